"""Whatever stands in the JSON files of a model folder, the answer is the same or the error is one line."""

import pytest

from .. import fuzz


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fuzzed")
    fuzz.write_folder(made)
    return made


@pytest.mark.parametrize("name", fuzz.FILES)
def test_thirty_examples(name, folder):
    assert fuzz.fuzz(folder, name, examples=30) == {}


@pytest.mark.long
@pytest.mark.parametrize("name", fuzz.FILES)
def test_two_thousand_examples(name, folder):
    assert fuzz.fuzz(folder, name, examples=2000) == {}


def test_a_failure_is_found(folder, monkeypatch):
    monkeypatch.setattr(fuzz, "WRONG", {"another end": 299})
    assert fuzz.failure(folder, False, "another answer") == "another answer, and nothing said"
    assert fuzz.failure(folder, True, "another answer") is None
    for error, words in ((TypeError("x"), "TypeError: 'x'"), (fuzz.Qwen3Error("short"), "a message of 5 characters")):
        monkeypatch.setattr(fuzz, "answers", lambda folder, error=error: (_ for _ in ()).throw(error))
        assert fuzz.failure(folder, True, "").startswith(words)
