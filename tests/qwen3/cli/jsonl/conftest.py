"""A small model with a chat template, and `qwen3 generate` on a prompts file in an empty folder."""

import json

import pytest

from qwen3 import LLM
from qwen3.cli.main import main

from ...conftest import write_checkpoint

TEMPLATE = (
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}{{ style }}"
)

END_OF_TURN = "\u0100"


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The model samples unless it is told otherwise."""
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    # The token of byte 0, which no text of these tests holds, ends a turn.
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TURN}))
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.8}))
    return path


@pytest.fixture(scope="package")
def llm(folder):
    return LLM(folder, device="cpu", dtype="float32")


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capfdbinary):
    """Writes lines (values, or bytes as they stand) to in.jsonl and answers them -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(lines, *arguments, source="in.jsonl"):
        if lines is not None:
            whole = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
            (tmp_path / "in.jsonl").write_bytes(b"\n".join(whole) + b"\n")
        options = ("--repo_id", folder, "--max-new-tokens", 4, "--temperature", 0, "--dtype", "float32")
        try:
            code = main([str(a) for a in ("generate", "--prompts-file", source, *options, *arguments)])
        except SystemExit as end:
            code = end.code
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return run


@pytest.fixture
def records(tmp_path):
    """Reads a file of records -> the list of them."""
    return lambda name="out.jsonl": [json.loads(line) for line in (tmp_path / name).read_bytes().split(b"\n")[:-1]]


def one_line_error(result):
    code, out, err = result
    assert (code, out) == (2, b""), err
    assert "Traceback" not in err and err.count("error: ") == 1 and err.splitlines()[-1].startswith("error: "), err
    return err.splitlines()[-1]
