"""Stands for torch.cuda: devices, streams, captures, memory, and what the engine does with them."""

import contextlib
import re
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .cards import Allocator, Block, Card, Owned


@dataclass(eq=False)
class Launch:
    """A kernel of Triton's or of PyTorch's."""

    name: str
    phase: str
    layer: int | None
    captured: bool
    grid: tuple[int, ...] = ()


@dataclass
class Step:
    """What one step of the engine did. launches: those outside of graphs. graph: the one that it replayed."""

    phase: str
    decode: bool = False
    num_tokens: int = 0
    contexts: list[int] = field(default_factory=list)
    waits: int = 0
    copies: int = 0
    graph: "Graph | None" = None
    launches: list[Launch] = field(default_factory=list)


class Graph:
    """A recorded graph. stream, phase: where and when. outside: memory of other pools that it points to."""

    def __init__(self, world: "World") -> None:
        self.world, self.stream, self.phase = world, "", ""
        self.launches: list[Launch] = []
        self.outside: set[Owned] = set()
        self.pool_id: Any = world.new_pool()
        world.graphs.add(self)

    def pool(self) -> Any:
        return self.pool_id

    def replay(self) -> None:
        self.check()
        if self.world.step is not None:
            self.world.step.graph = self

    def check(self) -> None:
        for allocator in self.world.allocators:
            allocator.collect()
        if gone := sum(not owned.alive for owned in self.outside):
            self.world.breach(f"a graph points to memory that was freed: {gone} storages")


class World:
    """All that a dry run knows. phase: what is being driven; layer: the one that runs now, if any."""

    def __init__(self, card: Card, memory: int, devices: int = 2) -> None:
        self.card = card
        self.allocators = [Allocator(memory, self.pools) for _ in range(devices)]
        self.phase, self.layer, self.step = "start", None, None
        self.launches: list[Launch] = []
        self.steps: list[Step] = []
        # What is wrong, and the phases in which it was seen.
        self.breaches: dict[str, tuple[str, Counter[str]]] = {}
        self.waits: Counter[str] = Counter()
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.capturing: Graph | None = None
        self.workspaces: dict[tuple, Block] = {}
        self._streams = self._pools = 0
        self._owned: dict[int, Owned] = {}
        self._pinned: dict[int, bool] = {}  # storages -> a copy of one may be under way
        self._here = threading.local()  # the current device and stream are each thread's own

    @property
    def device(self) -> int:
        return getattr(self._here, "device", 0)

    @device.setter
    def device(self, index: int) -> None:
        self._here.device = index

    @property
    def stream(self) -> "Stream":
        found = getattr(self._here, "stream", None)
        return found if found is not None else Stream(self, self.device, "default")

    @stream.setter
    def stream(self, stream: "Stream | None") -> None:
        self._here.stream = stream

    def pools(self) -> set:
        """Those of graphs that are still there."""
        return {graph.pool_id for graph in self.graphs}

    def new_pool(self) -> tuple[str, int]:
        self._pools += 1
        return "pool", self._pools

    def index(self, device: Any = None) -> int:
        """The number of a device, of the current one if it names none."""
        device = torch.device("cuda", device) if isinstance(device, int) else device
        found = None if device is None else torch.device(device).index
        return self.device if found is None else found

    def breach(self, text: str, phase: str | None = None, like: str = "") -> None:
        """Something is wrong, in the phase that runs or in another one. Breaches that are alike are one."""
        where = "in a capture: " * (self.capturing is not None)
        _, phases = self.breaches.setdefault(where + (like or text), (where + text, Counter()))
        phases[phase or self.phase] += 1

    def fails(self, error: Exception) -> None:
        """What is driven raised an error."""
        text = f"raises {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.breach(text, like=re.sub(r"\d[\d,.]*", "N", text))

    def lines(self) -> list[str]:
        """One line for each breach: the first phase in which it was seen, and how many more there are."""
        return [
            f"[{next(iter(phases))}{f' and {len(phases) - 1} more' if len(phases) > 1 else ''}] {text}"
            for text, phases in self.breaches.values()
        ]

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        if self.capturing is not None:
            self.breach(f"waits: {what}")
        self.waits[f"[{self.phase}] {what}"] += 1
        if self.step is not None:
            self.step.waits += 1
        for key in self._pinned:
            self._pinned[key] = False

    def new_stream(self, index: int) -> str:
        self._streams += 1
        return f"side{self._streams % 32}"  # PyTorch has a ring of 32 for each device

    def own(self, tensor: torch.Tensor) -> Owned:
        """The memory of a tensor, given out when it is first seen."""
        key = storage(tensor)
        found = self._owned.get(key)
        if found is None or not found.alive:
            index = tensor.device.index or 0
            stream = self.stream
            name = stream.name if stream.device.index == index else f"cuda:{index}/default"
            graph = self.capturing if name == stream.name else None
            if self.capturing is not None and (graph is None or stream.name != self.capturing.stream):
                self.breach(f"allocates on {name}, outside of the graph's pool")
            private = None if graph is None else graph.pool_id
            try:
                found = self.allocators[index].own(tensor.untyped_storage(), index, name, private, graph is not None)
            except torch.OutOfMemoryError as error:
                self.breach(str(error), like="out of memory")
                raise
            self._owned[key] = found
            weakref.finalize(tensor.untyped_storage(), self._owned.pop, key, None)
        return found

    def address(self, tensor: torch.Tensor) -> int:
        return self.own(tensor).block.address + tensor.storage_offset() * tensor.element_size()

    def touch(self, tensor: torch.Tensor) -> None:
        """A captured launch points to a tensor."""
        if self.capturing is not None and tensor.device.type == "cuda":
            owned = self.own(tensor)
            if owned.block.segment.pool[2] is None:
                self.capturing.outside.add(owned)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.capturing is not None:
            self.breach("allocates pinned memory")
        tensor.constant = None  # or a copy of few values to a device is really done
        self._pinned[storage(tensor)] = False
        weakref.finalize(tensor.untyped_storage(), self._pinned.pop, storage(tensor), None)
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return storage(tensor) in self._pinned

    def start_copy(self, pinned: torch.Tensor) -> None:
        """A copy from or to pinned memory starts."""
        self._pinned[storage(pinned)] = True

    def in_flight(self, tensor: torch.Tensor) -> bool:
        """Whether a copy from or to pinned memory may still be under way."""
        return self._pinned.get(storage(tensor), False)

    def workspace(self, index: int) -> None:
        """cuBLAS takes one for each stream, at its first matmul there."""
        stream = self.stream.name if self.stream.device.index == index else f"cuda:{index}/default"
        if (index, stream) not in self.workspaces:
            private = self.capturing and self.capturing.pool_id
            allocator = self.allocators[index]
            block = allocator.malloc(self.card.cublas_workspace, stream, private, private is not None)
            self.workspaces[index, stream] = block

    @contextlib.contextmanager
    def capture(self, graph: Graph, stream: "Stream") -> Iterator[None]:
        before = self.device, getattr(self._here, "stream", None)
        self.device, self.stream = stream.device.index, stream
        self.capturing, graph.stream, graph.phase, first = graph, stream.name, self.phase, len(self.launches)
        try:
            yield
        finally:
            graph.launches = self.launches[first:]
            self.capturing = None
            self.device, self.stream = before


class Stream:
    """A stream of one device."""

    def __init__(self, world: World, device: Any = None, name: str = "") -> None:
        self.world = world
        self.device = torch.device("cuda", world.index(device))
        self.name = f"{self.device}/{name or world.new_stream(self.device.index)}"
        self.cuda_stream = 0

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event(self.world)

    def synchronize(self) -> None:
        self.world.wait("stream.synchronize")


class Event:
    """An event of a stream: the host may wait for it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.world.wait("event.synchronize")


def storage(tensor: torch.Tensor) -> int:
    """What is the same for two tensors that share memory."""
    return tensor.untyped_storage()._cdata
