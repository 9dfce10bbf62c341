"""The engine that a question makes for itself."""

import argparse

import pytest

from benchmarks.questions import batching, eventloop, serve


@pytest.mark.parametrize("question", [batching, eventloop, serve], ids=["batching", "eventloop", "serve"])
def test_requests_that_come_again_are_computed_again(question, monkeypatch):
    """The gate and every round send the same prompts."""

    class Made(Exception):
        pass

    def make(model, **options):
        raise Made(options)

    monkeypatch.setattr(question, "LLM", make)
    parser = argparse.ArgumentParser()
    question.add_arguments(parser)
    with pytest.raises(Made) as made:
        question.run(parser.parse_args([]))
    [options] = made.value.args
    assert options["prefix_caching"] is False and options["dtype"] == "float32" and options["max_num_seqs"] > 1
