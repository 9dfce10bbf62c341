"""Stop strings across token borders, and the text of answers that end for every reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3.text.stream import StopStrings, TextStream

PIECES = st.lists(st.text("ab!", max_size=4), max_size=12)


END, MORE = 1000, 1001


class Letters:
    """A tokenizer whose token i is chr(i); <end> and <more> are special tokens."""

    def __init__(self):
        self.special_tokens = {"<end>": END, "<more>": MORE}

    def token_bytes(self, token, skip_special_tokens=False):
        name = next((name for name, i in self.special_tokens.items() if i == token), None)
        return (chr(token) if name is None else "" if skip_special_tokens else name).encode()


def run(text, stop=(), stop_ids=(), max_length=100, **options):
    """The pieces of an answer, and why it ended: as the engine ends it, unless a stop string comes first.

    text: its characters are tokens, and so are the numbers in it.
    """
    stream, pieces, reason = TextStream(Letters(), tuple(stop), **options), [], None
    for count, token in enumerate((ord(c) if isinstance(c, str) else c for c in text), 1):
        reason = "stop" if token in stop_ids else "length" if count == max_length else None
        piece, stopped = stream.push(token, reason)
        pieces.append(piece)
        reason = "stop" if stopped is not None else reason
        if reason:
            break
    return pieces, reason


def answer(text, stop=(), **options):
    """The whole text and the stop string that ended it; the last token is the longest answer's."""
    stream, out = TextStream(Letters(), tuple(stop), **options), ""
    for i, token in enumerate(text, 1):
        piece, stopped = stream.push(
            ord(token) if isinstance(token, str) else token, "length" * (i == len(text)) or None
        )
        out += piece
        if stopped is not None:
            return out, stopped
    return out, None


@pytest.mark.parametrize("stop, text", [("aab", "xaaaab"), ("abab!", "ababab!"), ("aba", "abaca")])
def test_a_stop_string_that_begins_inside_of_itself(stop, text):
    """What is held back is the longest start of it, of which the text has several."""
    finder, out = StopStrings((stop,)), ""
    for piece in text:
        text_before, found = finder.push(piece)
        out += text_before
        if found:
            break
    assert (out, found) == (text[: text.index(stop)], stop)


@given(PIECES, st.lists(st.text("ab!", min_size=1, max_size=4), max_size=3))
def test_text_up_to_the_earliest_stop_string_however_it_is_cut(pieces, stops):
    filter_, out, stopped = StopStrings(tuple(stops)), "", None
    seen = ""
    for piece in pieces:
        seen += piece
        text, stopped = filter_.push(piece)
        out += text
        assert seen.startswith(out)
        if stopped:
            break
    if not stopped:
        out += filter_.finish()
    places = [seen.find(stop) for stop in stops if stop in seen]
    assert (stopped is not None) == bool(places)
    assert out == (seen[: min(places)] if places else seen)
    if places:
        assert stopped == next(stop for stop in stops if seen.startswith(stop, min(places)))


def test_only_the_possible_start_of_a_stop_string_is_held_back():
    pieces, reason = run("say END", stop=("END.",))
    assert pieces == ["s", "a", "y", " ", "", "", ""] and reason is None
    pieces, _ = run("say ENDED", stop=("END.",))
    assert pieces[-2:] == ["END", "ED"]  # the second E may begin another


def test_finish_reasons():
    assert run("abc.", stop=("c.",)) == (["a", "b", "", ""], "stop")
    assert run("ab\0c", stop_ids=(0,)) == (["a", "b", ""], "stop")
    assert run("abcdef", max_length=3) == (["a", "b", "c"], "length")


def test_an_error_adds_no_text_of_its_own_and_gives_what_was_held_back():
    stream = TextStream(Letters(), ("END",))
    pieces = [stream.push(ord(character), None)[0] for character in "abEN"]
    assert pieces == ["a", "b", "", ""] and stream.push(-1, "error") == ("EN", None)


def test_text_held_back_is_given_at_the_end():
    assert run("abEN", stop=("END",), max_length=4) == (["a", "b", "", "EN"], "length")
    assert run("abE\0", stop=("END",), stop_ids=(0,)) == (["a", "b", "", "E"], "stop")


def test_a_stop_string_that_the_last_token_completes_is_a_stop():
    assert run("abEND", stop=("END",), max_length=5) == (["a", "b", "", "", ""], "stop")


def test_a_stop_token_inside_a_held_stop_string_adds_no_text():
    assert run("aE\0", stop=("E\0",), stop_ids=(0,)) == (["a", "", "E"], "stop")


def test_a_model_without_a_tokenizer_has_no_text():
    assert TextStream(None).push(65, None) == ("", None) and TextStream(None).push(65, "length") == ("", None)


@pytest.mark.parametrize("skip", [True, False])
def test_a_stop_string_may_be_or_hold_a_special_token(skip):
    """Found as the token and as letters, whether the text shows special tokens or not; the text never holds it."""
    end = "" if skip else "<end>"
    for text, stop, shown, found in [
        (["a", END, "b"], ["<end>"], "a", "<end>"),
        ([*"a<end>", "b"], ["<end>"], "a", "<end>"),
        (["a", "x", END, "b"], ["x<end>"], "a", "x<end>"),
        (["a", END, *"xb"], ["<end>x"], "a", "<end>x"),
        (["a", END, MORE, "b"], ["<end><more>"], "a", "<end><more>"),
        (["a", END, "b", MORE, "c"], ["<end><more>"], f"a{end}b{'' if skip else '<more>'}c", None),
        (["a", "x", END, "b"], ["x<end>", "a"], "", "a"),
        (["a", "x", END, "b"], ["y", "x<end>"], "a", "x<end>"),
        (["a", "x", "b"], ["x<end>"], "axb", None),
        (["a", "b", END], ["<end>", "bq"], "ab", "<end>"),
        (["a", "x"], ["x<end>"], "ax", None),
        (["a", END, "b"], ["<en"], "ab" if skip else "a", None if skip else "<en"),
    ]:
        assert answer(text, stop, skip_special_tokens=skip) == (shown, found), (text, stop)
        included = shown + (found or "")
        assert answer(text, stop, skip_special_tokens=skip, include_stop=True) == (included, found), (text, stop)


def test_special_tokens_are_in_the_text_only_when_asked_for():
    assert answer(["a", END, "b"])[0] == "ab" and answer(["a", END, "b"], ["<more>"])[0] == "ab"
    assert answer(["a", END, "b"], skip_special_tokens=False)[0] == "a<end>b"


def test_the_stop_token_is_in_the_text_only_when_asked_for():
    assert run("ab.", stop_ids=(ord("."),)) == (["a", "b", ""], "stop")
    assert run("ab.", stop_ids=(ord("."),), include_stop=True) == (["a", "b", "."], "stop")
    assert run(["a", END], stop_ids=(END,), include_stop=True) == (["a", ""], "stop")
    assert run(["a", END], stop_ids=(END,), include_stop=True, skip_special_tokens=False) == (["a", "<end>"], "stop")
    assert run(["a", END], stop=("<end>",), stop_ids=(END,), include_stop=True) == (["a", "<end>"], "stop")


def test_stop_strings_are_not_looked_for_in_the_first_tokens():
    assert answer("a.b.c", ".")[0] == "a"
    assert answer("a.b.c", ".", min_tokens=1)[0] == "a"
    assert answer("a.b.c", ".", min_tokens=2) == ("a.b", ".")
    assert answer("ab.c", ["b."], min_tokens=2) == ("ab.c", None)
    assert answer(["a", END, "b", END], ["<end>"], min_tokens=2) == ("ab", "<end>")


def test_half_a_character_before_a_stop_token_is_kept():
    class Bytes(Letters):
        def token_bytes(self, token, skip_special_tokens=False):
            return bytes([token])

    for last, shown in (("stop", "a\ufffd"), ("length", "a\ufffd."), ("error", "a\ufffd")):
        stream = TextStream(Bytes(), ("xx",))
        assert "".join(stream.push(t, r)[0] for t, r in [(97, None), (0xC3, None), (46, last)]) == shown


def test_a_longer_name_of_a_special_token_comes_first():
    class Nested(Letters):
        def __init__(self):
            self.special_tokens = {"<end>": END, "[<end>]": MORE, "": 1002}

    stream = TextStream(Nested(), ("[<end>]",))
    assert [stream.push(token, None) for token in (ord("a"), END, MORE)][1:] == [("", None), ("", "[<end>]")]
