"""Stop strings across token borders, and the text of answers that end for every reason."""

from hypothesis import given
from hypothesis import strategies as st

from qwen3.text.stream import StopStrings, TextStream

PIECES = st.lists(st.text("ab!", max_size=4), max_size=12)


class Letters:
    """A decoder whose token i is chr(i)."""

    def push(self, token):
        return chr(token)

    def finish(self):
        return ""


def run(text, stop=(), stop_ids=(), max_length=100):
    """The pieces of an answer, and why it ended: as the engine ends it, unless a stop string comes first."""
    stream, pieces, reason = TextStream(Letters(), tuple(stop)), [], None
    for count, character in enumerate(text, 1):
        reason = "stop" if ord(character) in stop_ids else "length" if count == max_length else None
        piece, stopped = stream.push(ord(character), reason)
        pieces.append(piece)
        reason = "stop" if stopped else reason
        if reason:
            break
    return pieces, reason


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
