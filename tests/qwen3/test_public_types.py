"""Every parameter of every public method, with every wrong type: a Qwen3Error of one line that names it."""

import asyncio
import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch

from qwen3 import LLM, EngineConfig, Qwen3Error, SamplingParams

SHORT = SamplingParams(max_new_tokens=1, temperature=0)
ENDLESS = range(10**15)
# Wrong wherever it is tried, but for what RIGHT lists.
WRONG = {
    "None": None, "a number": 5, "a float": 5.5, "not a number": float("nan"), "a huge number": 10**400, "true": True,
    "bytes": b"x", "a byte array": bytearray(b"ab"), "a memory view": memoryview(b"ab"), "an object": object(),
    "a class": int, "a class of arrays": np.ndarray, "a class of tensors": torch.Tensor, "a function": lambda: 1,
    "a complex number": 1j, "an empty dict": {}, "a dict": {"prompt": "x"}, "tokens": {"input_ids": [1, 2]},
    "a message": {"role": "user", "content": "x"}, "messages": [{"role": "user", "content": "x"}], "a set": {1, 2},
    "a list of None": [None], "a list of bytes": [b"x"], "a list of floats": [1.5], "a list of flags": [True],
    "a list of dicts": [{}], "a list of classes": [int], "lists of floats": [[1.5]], "lists of texts": [["x"]],
    "lists of None": [[None]], "lists of lists": [[[1]]], "ids and text": [1, "x"], "text and id": ["x", 1],
    "a negative id": [-1], "an unknown id": [320], "a huge id": [10**400], "a list of negative ids": [[-1]],
    "a lone surrogate": "\ud800", "a list of lone surrogates": ["\ud800"], "an empty text": "", "empty texts": [""],
    "a list of nothing": [[]], "an endless range": ENDLESS, "endless ranges": [ENDLESS],
    "an array of floats": np.zeros(3), "a matrix of floats": np.zeros((2, 2)), "a scalar array": np.array(3),
    "an array of flags": np.array([True]), "a tensor of floats": torch.zeros(3), "a scalar tensor": torch.tensor(3),
    "a tensor without data": torch.zeros(3, device="meta"), "a tensor of flags": torch.tensor([True]),
    "a true tensor": torch.tensor(True), "a true array": np.array(True), "a sparse tensor": torch.eye(2).to_sparse(),
    "another call's parameters": SHORT, "an engine's options": EngineConfig(),
}  # fmt: skip
# The values of WRONG that each parameter takes.
RIGHT = {
    ("generate", "params"): {"None", "another call's parameters", "a list of None"},
    ("generate_each", "params"): {"None", "another call's parameters", "a list of None"},
    **{(method, "params"): {"None", "another call's parameters"} for method in ("stream", "stream_async", "chat")},
    **{(method, "params"): {"None", "another call's parameters"} for method in ("check", "prepare")},
    **{(method, "messages"): {"messages"} for method in ("chat", "render")},
    # What a message calls the prompt: it is only shown.
    ("prepare", "name"): set(WRONG),
}
GOOD = {
    "prompts": ["x"], "prompt": "x", "params": SHORT, "messages": WRONG["messages"], "token_ids": [1, 2], "name": "it",
}  # fmt: skip
METHODS = [name for name, value in vars(LLM).items() if not name.startswith("_") and inspect.isfunction(value)]
PARAMETERS = [
    (method, parameter.name)
    for method in METHODS
    for parameter in inspect.signature(getattr(LLM, method)).parameters.values()
    if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD
]


@pytest.fixture(scope="module")
def llm(small):
    with LLM(small, device="cpu") as llm:
        llm.tokenizer._template.templates["default"] = "{{ messages[0].content }}"
        yield llm


async def gathered(pieces):
    return [piece async for piece in pieces]


def call(llm, method, **arguments):
    """Calls a method and reads what it gives to its end."""
    if method == "complete" and "requests" not in arguments:
        arguments["requests"] = [llm.prepare("x", SHORT)]
    result = getattr(llm, method)(**arguments)
    if method == "stream_async":
        return asyncio.run(gathered(result))
    return list(result) if method in ("stream", "generate_each", "complete") else result


def refused(call, what, name=""):
    """Checks that a call raises one line that names `name`."""
    try:
        call()
    except Qwen3Error as error:
        message = str(error)
        assert message.isprintable() and name in message and 10 < len(message) < 300, what
    except Exception as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    else:
        pytest.fail(f"{what} is taken")


def test_the_table_names_every_parameter():
    assert {name for _, name in PARAMETERS} == GOOD.keys() | {"requests"} and len(PARAMETERS) >= 18
    assert RIGHT.keys() <= set(PARAMETERS)


@pytest.mark.parametrize("method, parameter", PARAMETERS, ids=lambda value: value)
def test_a_wrong_type_is_one_line(llm, method, parameter):
    names = {name for found, name in PARAMETERS if found == method} - {"requests"}
    arguments = {name: GOOD[name] for name in names}
    call(llm, method, **arguments)
    for what, value in WRONG.items():
        if what in RIGHT.get((method, parameter), ()):
            if parameter != "name":
                call(llm, method, **arguments | {parameter: value})
            continue
        refused(lambda value=value: call(llm, method, **arguments | {parameter: value}), what)


OPTIONS = [f.name for f in fields(EngineConfig)]
# Beside these None is taken where it is the default.
TAKEN = {
    "graph_recorder": {"a class", "a class of arrays", "a class of tensors", "a function"},
    "memory_utilization": set(),
    **{name: {"true"} for name in ("prefix_caching", "cuda_graphs", "kv_cache")},
    **{
        name: {"a number", "a scalar tensor", "a scalar array"}
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_block_size", "num_kv_blocks")
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_type_of_an_engines_option_is_one_line(small, name):
    for what, value in WRONG.items():
        if what in TAKEN.get(name, ()) or (value is None and EngineConfig.__dataclass_fields__[name].default is None):
            EngineConfig(**{name: value})
            continue
        refused(lambda value=value: LLM(small, **{name: value}), what, name)


@pytest.mark.parametrize("name", ["engine_config", "progress", "random_weights", "expert_stats"])
def test_a_wrong_type_of_an_argument_of_the_constructor_is_one_line(small, name):
    for what, value in WRONG.items():
        if (value is True or value is None or isinstance(value, EngineConfig)) and name == "engine_config":
            continue
        if value is True:
            continue
        refused(lambda value=value: LLM(small, **{name: value}), what, name)


@pytest.mark.parametrize("name", ["device", "dtype", "backend"])
@pytest.mark.parametrize(
    "value", ["", "x", "\x00", "x\n", "\ud800", "cuda:-1", "cuda:9" + "9" * 40, "cpu:1", "meta", "CPU", "y" * 10**6]
)
def test_a_name_that_nothing_has_is_one_line(small, name, value):
    with pytest.raises(Qwen3Error, match=name) as error:
        LLM(small, **{name: value})
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_the_objects_of_torch_are_taken_for_their_names(small):
    llm = LLM(small, device=torch.device("cpu"), dtype=torch.float16)
    assert llm.engine_config == EngineConfig(device="cpu", dtype="float16")
    assert llm.dtype == torch.float16 and llm.device == torch.device("cpu")
    assert LLM(small, device="cpu:0", dtype=torch.float32).device == torch.device("cpu")
    for dtype in (torch.int8, torch.float64, torch.complex64):
        with pytest.raises(Qwen3Error, match="dtype"):
            LLM(small, device="cpu", dtype=dtype)
