"""Messages are one line that cannot steer a terminal, whatever they quote."""

from qwen3.errors import Qwen3Error, brief, closest, counted, one_line, shown


def test_what_is_not_printable_is_escaped_and_what_is_long_is_cut():
    assert str(Qwen3Error("a\n\x1b[31m\ud800é")) == "a\\n\\x1b[31m\\ud800é"
    assert shown("y" * 10, 4) == "yyyy..." and shown("yyyy", 4) == "yyyy"
    assert len(str(Qwen3Error("y" * 10**5))) == 2003
    assert brief("a\x1b") == r"'a\x1b'" and brief(10**5000) == "a int that is too large to show"
    assert one_line(ValueError("a\n  b\x1b")) == "ValueError: a b\\x1b"
    assert len(one_line(ValueError("y" * 10**5))) == 303


def test_a_mistyped_name_finds_the_one_that_was_meant():
    assert closest("promt", ["prompts-file", "prompt"]) == "prompt" and closest("x", ["prompt"]) is None
    assert closest("model", ["verbose", "help"]) is None and closest("promt" * 10**6, ["prompt"]) is None
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]
