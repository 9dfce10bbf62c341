"""Puts a World in the place of torch.cuda, for the rest of the process."""

import ctypes
import gc
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._device import _device_constructors

from .cards import Allocator
from .watch import Watch, nested
from .world import Event, Graph, Stream, World


def enter(world: World) -> None:
    """From here on torch.cuda is `world`; threads that start compute with tensors without memory."""
    _install_guard()
    _install_cuda(world)
    _install_pinned(world)
    mode, watch, run = FakeTensorMode(allow_non_fake_inputs=True), Watch(world), threading.Thread.run

    def watched(thread: threading.Thread) -> None:
        with mode, watch:
            run(thread)

    threading.Thread.run = watched


def in_thread(function: Any) -> Any:
    """The result of a function in a thread of its own, which sees the world that was entered."""
    result: list = []

    def run() -> None:
        try:
            result.append((function(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _install_guard() -> None:
    """What switches between devices is Meta's, which does nothing: CUDA's is not there, or would look for a driver."""
    lib = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = (ctypes.c_void_p * 21).in_dll(lib, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # c10::DeviceType
    registry[cuda] = registry[meta]


def _install_cuda(world: World) -> None:
    class On:
        """torch.cuda.device"""

        def __init__(self, device: Any) -> None:
            self.index = world.index(device)

        def __enter__(self) -> None:
            self.before, world.device = world.device, self.index

        def __exit__(self, *_: object) -> None:
            world.device = self.before

    class OnStream:
        """torch.cuda.stream"""

        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before = world.device, world.stream
            world.device, world.stream = self.stream.device.index, self.stream

        def __exit__(self, *_: object) -> None:
            world.device, before = self.before
            world.stream = None if before.name.endswith("/default") else before

    class Capture:
        """torch.cuda.graph: one stream for the process where none is given, of the device that is current then."""

        default_capture_stream: Stream | None = None

        def __init__(
            self, graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
        ) -> None:
            if stream is None and Capture.default_capture_stream is None:
                Capture.default_capture_stream = Stream(world)
            self.graph, self.stream = graph, stream or Capture.default_capture_stream
            graph.pool_id = pool or graph.pool_id

        def __enter__(self) -> None:
            world.wait("start of a capture")
            for allocator in world.allocators:
                allocator.empty_cache()
            self.context = world.capture(self.graph, self.stream)
            self.context.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.context.__exit__(*error)

    def memory(device: Any = None) -> Allocator:
        found = world.allocators[world.index(device)]
        found.collect()
        return found

    def empty_cache() -> None:
        gc.collect()
        for allocator in world.allocators:
            allocator.empty_cache()

    def reset_peak(device: Any = None) -> None:
        memory(device).peak = memory(device).allocated

    def properties(device: Any = None) -> SimpleNamespace:
        card = world.card
        return SimpleNamespace(
            name=card.name,
            major=card.arch // 10,
            minor=card.arch % 10,
            total_memory=memory(device).total,
            multi_processor_count=card.multiprocessors,
            shared_memory_per_block_optin=card.shared,
            warp_size=32,
        )

    stand_ins = {
        "Stream": type(
            "Stream", (Stream,), {"__init__": lambda self, device=None, **_: Stream.__init__(self, world, device)}
        ),
        "stream": OnStream,
        "CUDAGraph": type("CUDAGraph", (Graph,), {"__init__": lambda self, **_: Graph.__init__(self, world)}),
        "graph": Capture,
        "device": On,
        "Event": lambda *_, **__: Event(world),
        "graph_pool_handle": world.new_pool,
        "current_stream": lambda device=None: world.stream if device is None else Stream(world, device, "default"),
        "default_stream": lambda device=None: Stream(world, device, "default"),
        "current_device": lambda: world.device,
        "set_device": lambda device: setattr(world, "device", world.index(device)),
        "synchronize": lambda device=None: world.wait("torch.cuda.synchronize"),
        "empty_cache": empty_cache,
        "is_available": lambda: False,  # or Triton's own driver would be looked for
        "is_current_stream_capturing": lambda: world.capturing is not None,
        "device_count": lambda: len(world.allocators),
        "mem_get_info": lambda device=None: (memory(device).available(), memory(device).total),
        "memory_allocated": lambda device=None: memory(device).allocated,
        "memory_reserved": lambda device=None: memory(device).reserved,
        "max_memory_allocated": lambda device=None: memory(device).peak,
        "max_memory_reserved": lambda device=None: memory(device).peak_reserved,
        "reset_peak_memory_stats": reset_peak,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: divmod(world.card.arch, 10),
        "get_device_name": lambda device=None: world.card.name,
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)


def _install_pinned(world: World) -> None:
    """Tensors in pinned memory, and values of tensors that have none."""

    def make(stock: Any, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        out = stock(*args, **kwargs)
        return world.pin(out) if pin_memory and isinstance(out, FakeTensor) else out

    _device_constructors()  # a cache of these functions, which `with torch.device(...)` looks them up in
    for name in ("tensor", "empty", "zeros", "ones", "full"):
        setattr(torch, name, partial(make, getattr(torch, name)))
    stock_tolist, stock_numpy, stock_data_ptr = torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.data_ptr

    def tolist(tensor: torch.Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return stock_tolist(tensor)
        if tensor.device.type == "cuda":
            world.wait(f"tolist of {list(tensor.shape)}")
        elif world.in_flight(tensor):
            world.breach("reads pinned memory before the copy into it has ended")
        return nested(tuple(tensor.shape), tensor.dtype)

    def numpy(tensor: torch.Tensor, **options: Any) -> np.ndarray:
        if not isinstance(tensor, FakeTensor):
            return stock_numpy(tensor, **options)
        return np.array(tolist(tensor), dtype=str(tensor.dtype).removeprefix("torch."))

    def data_ptr(tensor: torch.Tensor) -> int:
        if not isinstance(tensor, FakeTensor):
            return stock_data_ptr(tensor)
        return world.address(tensor) if tensor.device.type == "cuda" else 0

    torch.Tensor.tolist = FakeTensor.tolist = tolist
    torch.Tensor.numpy, torch.Tensor.data_ptr = numpy, data_ptr
    torch.Tensor.pin_memory = lambda tensor, *_: world.pin(tensor.clone())
