"""Stop strings across tokens, and the reasons for which a sequence ends."""

import pytest

from qwen3.sampling import SamplingParams
from qwen3.sequence import Sequence, percentile


class Letters:
    """A decoder whose token i is chr(i)."""

    def push(self, token):
        return chr(token)

    def finish(self):
        return ""


def run(text, stop_ids=(), max_length=100, **params):
    sequence = Sequence([1, 2], SamplingParams(**params), frozenset(stop_ids), max_length, Letters())
    pieces = []
    for character in text:
        pieces.append(sequence.append(ord(character), None))
        if sequence.finish_reason:
            break
    return sequence, pieces


def test_only_the_possible_start_of_a_stop_string_is_held_back():
    sequence, pieces = run("say END", stop=("END.",))
    assert pieces == ["s", "a", "y", " ", "", "", ""] and sequence.finish_reason is None
    sequence, pieces = run("say ENDED", stop=("END.",))
    assert pieces[-2:] == ["END", "ED"]  # the second E may begin it anew


def test_finish_reasons():
    sequence, pieces = run("abc.", stop=("c.",))
    assert (sequence.finish_reason, sequence.text) == ("stop", "ab")
    sequence, _ = run("ab\0c", stop_ids=(0,))
    assert (sequence.finish_reason, sequence.text, sequence.token_ids[2:]) == ("stop", "ab", [97, 98, 0])
    sequence, _ = run("abcdef", max_new_tokens=3)
    assert (sequence.finish_reason, sequence.text) == ("length", "abc")
    sequence, _ = run("abcdef", max_length=4)  # two of them are the prompt
    assert (sequence.finish_reason, sequence.text) == ("length", "ab")


def test_text_held_back_is_given_at_the_end():
    sequence, pieces = run("abEN", max_new_tokens=4, stop=("END",))
    assert pieces == ["a", "b", "", "EN"] and sequence.text == "abEN"
    sequence, pieces = run("abE\0", stop_ids=(0,), stop=("END",))
    assert sequence.text == "abE" == "".join(pieces)


def test_a_stop_string_that_the_last_token_completes_is_a_stop():
    sequence, _ = run("abEND", max_new_tokens=5, stop=("END",))
    assert (sequence.finish_reason, sequence.text) == ("stop", "ab")


def test_percentile():
    assert percentile([5.0, 1.0, 3.0], 50) == 3.0
    assert percentile([float(i) for i in range(101)], 99) == pytest.approx(99.0)
    assert percentile([], 50) == 0.0
