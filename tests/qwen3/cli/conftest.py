"""A small model with a chat template, and the command line run in an empty folder."""

import json

import pytest

from qwen3.cli.main import main
from qwen3.load.resolve import TINY

from ..conftest import write_checkpoint

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model with a chat template and its own sampling defaults."""
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.8, "top_k": 30}))
    return path


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """The embedded model with a chat template: nothing is made for it."""
    path = tmp_path_factory.mktemp("talker")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).symlink_to(TINY / name)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def generate(run, folder):
    return lambda *arguments: run("generate", "--repo_id", folder, "--max-new-tokens", 8, *arguments)
