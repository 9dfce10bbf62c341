"""Text that arrives token by token: whole characters, as soon as they are certain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.text.stream import IncrementalDecoder
from qwen3.text.tokenizer import Tokenizer

from .folders import ids_of, texts


def check_pieces(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    """The pieces, after checking that they add up and that each comes as soon as it is certain and no sooner."""
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    pieces = []
    for count, token_id in enumerate(ids, 1):
        pieces.append(decoder.push(token_id))
        so_far, whole = "".join(pieces), tokenizer.decode(ids[:count], skip_special_tokens=skip)
        # Only the start of a character is held back: one U+FFFD in the whole, or two if it starts like a surrogate.
        assert whole.startswith(so_far) and whole[len(so_far) :] in ("", "\ufffd", "\ufffd\ufffd")
    pieces.append(decoder.finish())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    return pieces


def test_pieces_add_up_for_any_ids(small):
    @settings(max_examples=400, deadline=None)
    @given(ids=ids_of(small, 400), skip=st.booleans())
    def check(ids, skip):
        check_pieces(small, ids, skip)

    check()


def test_pieces_add_up_for_any_qwen_ids(qwen):
    @settings(max_examples=300, deadline=None)
    @given(ids=ids_of(qwen, 151_936), skip=st.booleans())
    def check(ids, skip):
        check_pieces(qwen, ids, skip)

    check()


@settings(max_examples=200, deadline=None)
@given(text=texts.filter(lambda text: "\ufffd" not in text))
def test_pieces_of_text_hold_no_broken_character(small, text):
    pieces = check_pieces(small, small.encode(text), skip=False)
    assert not any("\ufffd" in piece for piece in pieces) and pieces[-1] == ""


def test_a_split_emoji_comes_whole(qwen):
    ids = qwen.encode("a 🧿b")
    assert len(ids) == 5
    assert check_pieces(qwen, ids, skip=True) == ["a", " ", "", "🧿", "b", ""]


def test_bytes_of_a_split_character(small):
    smile = [small.token_to_id(c) for c in "ðŁĺĢ"]  # F0 9F 98 80
    end, unknown, letter = small.token_to_id("<|im_end|>"), small.vocab_size + 5, small.token_to_id("a")
    assert check_pieces(small, smile, skip=True) == ["", "", "", "😀", ""]
    assert check_pieces(small, [smile[0], unknown, end, *smile[1:]], skip=True) == ["", "", "", "", "", "😀", ""]
    assert check_pieces(small, [*smile[:3], end], skip=False) == ["", "", "", "\ufffd<|im_end|>", ""]
    assert check_pieces(small, [*smile[:3], letter], skip=True) == ["", "", "", "\ufffda", ""]
    assert check_pieces(small, smile[:3], skip=True) == ["", "", "", "\ufffd"]
    assert check_pieces(small, smile[1:], skip=True) == ["\ufffd", "\ufffd", "\ufffd", ""]
    assert check_pieces(small, [], skip=True) == [""]


def test_skipping_special_tokens_is_the_default(small):
    decoder = IncrementalDecoder(small)
    assert decoder.push(small.token_to_id("<|im_end|>")) == "" and decoder.push(small.token_to_id("<note>")) == "<note>"


@pytest.mark.parametrize("token", ["a", "ð", "Ģ"], ids=["letters", "lead bytes", "continuation bytes"])
def test_the_cost_of_a_token_does_not_grow(small, token):
    """What a decoder keeps is the start of one character, however many tokens it has seen."""
    decoder, token_id = IncrementalDecoder(small), small.token_to_id(token)
    for _ in range(1000):
        assert len(decoder.push(token_id)) <= 2
        kept, _ = decoder._utf8.getstate()
        assert len(kept) <= 3
