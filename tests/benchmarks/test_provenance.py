"""The files that a figure depends on, and which change counts."""

from benchmarks.common import REPOSITORY
from benchmarks.provenance import changed, digest, sources


def tree(root):
    (root / "benchmarks/questions").mkdir(parents=True)
    for name, text in {
        "benchmarks/questions/q.py": "from ..common import x\nfrom qwen3 import llm\nimport torch",
        "benchmarks/__init__.py": "",
        "benchmarks/common.py": "x = 1",
        "benchmarks/other.py": "",
        "benchmarks/configs/small/config.json": "{}",
        "qwen3/__init__.py": "",
        "qwen3/llm.py": "def f():\n    from qwen3_kernels.ops import g",
        "qwen3/unused.py": "",
        "kernels/ops.py": "g = 2",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_imports_are_followed_everywhere_and_nothing_else_counts(tmp_path):
    assert list(sources(["benchmarks.questions.q"], tree(tmp_path))) == [
        "benchmarks/__init__.py",
        "benchmarks/common.py",
        "benchmarks/configs/small/config.json",
        "benchmarks/questions/q.py",
        "kernels/ops.py",
        "qwen3/__init__.py",
        "qwen3/llm.py",
    ]


def test_what_a_file_does_counts_and_not_what_it_says(tmp_path):
    record = {"sources": sources(["benchmarks.questions.q"], tree(tmp_path))}
    assert changed(record, tmp_path) == []
    (tmp_path / "benchmarks/common.py").write_text('"""Text."""\n# A comment.\nx  =  1\n')
    assert changed(record, tmp_path) == []
    (tmp_path / "benchmarks/common.py").write_text("x = 3")
    (tmp_path / "kernels/ops.py").unlink()
    (tmp_path / "qwen3/unused.py").write_text("y = 1")
    assert changed(record, tmp_path) == ["benchmarks/common.py", "kernels/ops.py"]


def test_a_docstring_alone_is_a_body(tmp_path):
    (tmp_path / "a.py").write_text('def f():\n    """Text."""\n')
    (tmp_path / "b.py").write_text('def f():\n    """Another."""\n')
    assert digest(tmp_path / "a.py") == digest(tmp_path / "b.py")


def test_questions_depend_on_the_kernels_and_the_command_line():
    assert "kernels/attention/decode.py" in sources(["benchmarks.questions.generate"], REPOSITORY)
    assert "qwen3/cli/generate.py" in sources(["qwen3.cli.main", "qwen3.cli.generate"], REPOSITORY)
