"""Every check of a single value: what passes, and that everything else is one line that names the value."""

import numpy as np
import pytest
import torch

from qwen3.config import values
from qwen3.errors import Qwen3Error, brief, shown

NOTHING = [None, [], {}, "x", b"x", object(), float("nan"), float("inf"), 10**5000, -1.5, [1], {"a": 1}, "\x1b[31m"]
CHECKS = {
    "flag": (lambda v: values.flag(v, "n"), [True, False], [*NOTHING, 0, 1, "true"]),
    "whole": (
        lambda v: values.whole(v, "n", 0, 9),
        [0, 9, np.int64(3), torch.tensor(4)],
        [*NOTHING, True, -1, 10, 3.0, np.array([3]), torch.tensor([3]), torch.tensor(True), np.bool_(1)],
    ),
    "number": (
        lambda v: values.number(v, "n", 0, 1),
        [0, 1, 0.5, np.float32(0.5), np.int64(1)],
        [*NOTHING, True, -0.1, 1.1],
    ),
    "above": (lambda v: values.number(v, "n", 0, 1, above=True), [1e-9, 1], [*NOTHING, 0, 0.0]),
    "text": (
        lambda v: values.text(v, "n"),
        ["a", "\x1b"],
        [v for v in NOTHING if not isinstance(v, str)] + ["", "\ud800"],
    ),
    "texts": (lambda v: values.texts(v, "n"), ["a", ["a", "b"], []], [None, {}, b"x", 5, [""], [None], ["\udfff"]]),
    "token_ids": (
        lambda v: values.token_ids(v, "n", 10),
        [[1, 2], (3,), np.array([1]), torch.tensor([9]), []],
        [
            None,
            "12",
            b"\1",
            bytearray(b"\1"),
            memoryview(b"\1"),
            {1},
            iter([1]),
            range(10**12),
            range(10**30),
            {1: 2},
            5,
            [10],
            [-1],
            [True],
            ["1"],
            [[1]],
            torch.tensor(3),
        ],
    ),
}


@pytest.mark.parametrize("check, good, bad", CHECKS.values(), ids=CHECKS)
def test_takes_the_good_and_refuses_the_bad_in_one_line(check, good, bad):
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(Qwen3Error, match=r"^n(\[\d\])? (is .*: it must be |has more than 10+ token ids)") as error:
            check(value)
        assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_errors_cannot_steer_a_terminal():
    assert str(Qwen3Error("a\nb\x1b]0;t\x07\u202e\ud800é")) == r"a\nb\x1b]0;t\x07\u202e\ud800é"
    assert len(shown("y" * 10**6)) < 2010
    assert brief(10**5000) == "a int that is too large to show"
