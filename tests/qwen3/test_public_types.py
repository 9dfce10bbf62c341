"""Every parameter of every public method, with every wrong type: a Qwen3Error of one line that names it."""

import asyncio
import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch

from qwen3 import LLM, EngineConfig, Qwen3Error, SamplingParams
from qwen3.text.tokenizer import Tokenizer

from .rigged import write_walk

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
    "a range of more than 2^63": range(10**30),
    "an array of floats": np.zeros(3), "a matrix of floats": np.zeros((2, 2)), "a scalar array": np.array(3),
    "an array of flags": np.array([True]), "a tensor of floats": torch.zeros(3), "a scalar tensor": torch.tensor(3),
    "a tensor without data": torch.zeros(3, device="meta"), "a tensor of flags": torch.tensor([True]),
    "a true tensor": torch.tensor(True), "a true array": np.array(True), "a sparse tensor": torch.eye(2).to_sparse(),
    "a nested tensor": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "another call's parameters": SHORT, "an engine's options": EngineConfig(),
}  # fmt: skip
RENDERS = ("render", "apply_chat_template", "encode_chat")
# The values of WRONG that each parameter takes.
RIGHT = {
    ("generate", "params"): {"None", "another call's parameters", "a list of None"},
    ("generate_each", "params"): {"None", "another call's parameters", "a list of None"},
    **{(method, "params"): {"None", "another call's parameters"} for method in ("stream", "stream_async", "chat")},
    **{(method, "params"): {"None", "another call's parameters"} for method in ("check", "prepare")},
    **{(method, "messages"): {"messages"} for method in ("chat", "render")},
    **{(method, "messages"): {"messages"} for method in ("apply_chat_template", "encode_chat")},
    **{(method, "add_generation_prompt"): {"None", "true"} for method in RENDERS},
    **{(method, "continue_final_message"): {"true"} for method in RENDERS},
    **{(method, "tools"): {"None", "messages", "a list of dicts"} for method in RENDERS},
    **{(method, "sanitize_control_tokens"): {"true"} for method in ("encode", "render", "encode_chat")},
    ("decode", "skip_special_tokens"): {"true"},
    # The engine asks for every token: not looked at.
    ("token_bytes", "skip_special_tokens"): set(WRONG),
    ("encode", "add_special_tokens"): {"true"},
    ("encode", "text"): {"an empty text"},
    ("token_to_id", "token"): {"an empty text"},
    ("decode", "ids"): {"an unknown id"},
    ("token_bytes", "token_id"): {"a number", "a scalar tensor", "a scalar array"},
    # What a message calls the prompt: it is only shown.
    ("prepare", "name"): set(WRONG),
}
FOR_TOKENIZER = {"text": "x", "ids": [1], "token": "a", "token_id": 1, "messages": WRONG["messages"]}
GOOD = {
    "prompts": ["x"], "prompt": "x", "params": SHORT, "messages": WRONG["messages"], "token_ids": [1, 2], "name": "it",
    "add_generation_prompt": None, "continue_final_message": False, "sanitize_control_tokens": False,
    "tools": [{"type": "function", "function": {"name": "f"}}],
}  # fmt: skip


def parameters(kind):
    """(method, parameter) of every public method of a class, without those that take any name."""
    methods = [name for name, value in vars(kind).items() if not name.startswith("_") and inspect.isfunction(value)]
    every = [(method, p) for method in methods for p in inspect.signature(getattr(kind, method)).parameters.values()]
    return [(method, p.name) for method, p in every if p.name != "self" and p.kind is not p.VAR_KEYWORD]


PARAMETERS = parameters(LLM)
OF_TOKENIZER = parameters(Tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    template = {"chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}"}
    return write_walk(tmp_path_factory.mktemp("walk"), ["a", "b"], template)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu") as llm:
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
    assert RIGHT.keys() <= {*PARAMETERS, *OF_TOKENIZER} and len(OF_TOKENIZER) >= 16


@pytest.mark.parametrize("method, parameter", OF_TOKENIZER, ids=lambda value: value)
def test_a_wrong_type_for_the_tokenizer_is_one_line(llm, method, parameter):
    required = {"encode": ["text"], "decode": ["ids"], "token_to_id": ["token"], "token_bytes": ["token_id"]}
    arguments = {name: FOR_TOKENIZER[name] for name in required.get(method, ["messages"])}
    function = getattr(llm.tokenizer, method)
    function(**arguments)
    for what, value in WRONG.items():
        if what in RIGHT.get((method, parameter), ()):
            function(**arguments | {parameter: value})
        else:
            refused(lambda value=value: function(**arguments | {parameter: value}), what)


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
def test_a_wrong_type_of_an_engines_option_is_one_line(folder, name):
    for what, value in WRONG.items():
        if what in TAKEN.get(name, ()) or (value is None and EngineConfig.__dataclass_fields__[name].default is None):
            EngineConfig(**{name: value})
            continue
        refused(lambda value=value: LLM(folder, **{name: value}), what, name)


def test_a_wrong_type_of_a_model_is_one_line():
    for what, value in WRONG.items():
        if value is not None:  # the latest download
            refused(lambda value=value: LLM(value, device="cpu"), what)


@pytest.mark.parametrize("name", ["engine_config", "progress", "random_weights", "expert_stats"])
def test_a_wrong_type_of_an_argument_of_the_constructor_is_one_line(folder, name):
    for what, value in WRONG.items():
        if (value is True or value is None or isinstance(value, EngineConfig)) and name == "engine_config":
            continue
        if value is True:
            continue
        refused(lambda value=value: LLM(folder, **{name: value}), what, name)


@pytest.mark.parametrize("name", ["device", "dtype", "backend"])
@pytest.mark.parametrize(
    "value", ["", "x", "\x00", "x\n", "\ud800", "cuda:-1", "cuda:9" + "9" * 40, "cpu:1", "meta", "CPU", "y" * 10**6]
)
def test_a_name_that_nothing_has_is_one_line(folder, name, value):
    with pytest.raises(Qwen3Error, match=name) as error:
        LLM(folder, **{name: value})
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_the_objects_of_torch_are_taken_for_their_names(folder):
    llm = LLM(folder, device=torch.device("cpu"), dtype=torch.float16)
    assert llm.engine_config == EngineConfig(device="cpu", dtype="float16")
    assert llm.dtype == torch.float16 and llm.device == torch.device("cpu")
    assert LLM(folder, device="cpu:0", dtype=torch.float32).device == torch.device("cpu")
    for dtype in (torch.int8, torch.float64, torch.complex64):
        with pytest.raises(Qwen3Error, match="dtype"):
            LLM(folder, device="cpu", dtype=dtype)
