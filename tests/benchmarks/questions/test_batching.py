"""The comparison of whole runs: the gate on tokens, the ratios, and static groups that wait for each other."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from benchmarks.questions import batching
from benchmarks.questions.batching import Requests, Result


def test_a_side_with_other_tokens_is_refused_before_timing():
    calls = []

    def side(ids):
        calls.append(ids)
        return Result([[1, 2], ids], [0.1, 0.2], 1.0)

    with pytest.raises(RuntimeError, match=r"continuous .* \[1\]"):
        batching.batching_figures({"continuous": lambda: side([3, 9]), "static": lambda: side([3, 4])}, rounds=5)
    assert len(calls) == 2


def test_ratios_and_percentiles_are_those_of_the_runs():
    ids = [[1] * 30, [2] * 10]
    # The first run of each is the gate's.
    seconds = {"continuous": iter([99.0, 6.0, 1.0, 2.0]), "static": iter([99.0, 4.0, 3.0, 8.0])}
    sides = {
        "continuous": lambda: Result(ids, [0.1, 0.3], next(seconds["continuous"])),
        "static": lambda: Result(ids, [0.1, 1.1], next(seconds["static"])),
    }
    continuous, static = batching.batching_figures(sides, rounds=3)
    assert (continuous["side"], static["side"]) == ("continuous", "static")
    assert continuous["tokens_per_second"] == 20
    assert [continuous[f"{mark}_seconds"] for mark in ("min", "median", "max")] == [1, 2, 6]
    assert continuous["speed_of_static"] == 2 and static["speed_of_static"] == 1
    # Six first tokens are too few for a percentile.
    assert not any(key.startswith("first_token") for key in static)


def test_first_tokens_of_all_rounds_are_counted():
    seconds = [0.01 * i for i in range(40)]
    # The gate's, which are not counted, then three rounds.
    rounds = iter(([9.0] * 40, seconds[::-1], seconds, [0.0] * 40))
    sides = {"static": lambda: Result([[1]] * 40, next(rounds), 2.0)}
    (row,) = batching.batching_figures(sides, rounds=3)
    assert row["first_token_p50_ms"] == pytest.approx(100, abs=10)
    assert row["first_token_p90_ms"] == pytest.approx(340, abs=10)


class PrefixEngine:
    """An LLM of known times: a prompt's first token after a millisecond for each token that is not cached."""

    made = ()

    def __init__(self, model, *, prefix_caching, **options):
        self.on, self.cached, self.config = prefix_caching, set(), None
        PrefixEngine.made = (*PrefixEngine.made, self)
        self.resets = self.hits = 0

    def reset_prefix_cache(self):
        self.resets += 1
        self.cached = set()

    def generate(self, prompts, params):
        answers = []
        for prompt in prompts:
            hit = 512 if self.on and tuple(prompt[:512]) in self.cached else 0
            self.hits += hit > 0
            self.cached.add(tuple(prompt[:512]))
            metrics = SimpleNamespace(time_to_first_token=(len(prompt) - hit) / 1e3)
            answers.append(SimpleNamespace(token_ids=[sum(prompt) % 97], metrics=metrics))
        return answers


@pytest.fixture
def prefix(monkeypatch):
    monkeypatch.setattr(batching, "LLM", PrefixEngine)
    monkeypatch.setattr(PrefixEngine, "made", ())
    monkeypatch.setattr(batching, "TAIL_TOKENS", (16, 16))
    monkeypatch.setattr(batching, "windows", lambda llm, count, size, seed: [[i] * size for i in range(count)])
    return SimpleNamespace(model="m", seed=0, sharing=8, system_tokens=512, rounds=3)


def test_prefix_caching_is_on_for_one_side_only(prefix):
    alone, together = batching.prefix_figures(prefix)
    on, off = PrefixEngine.made
    assert on.on and on.hits > 0 and not off.on and off.hits == 0
    for row in (alone, together):
        # 16 tokens of a tail; without the cache 512 shared ones as well.
        assert (row["with_ms"], row["without_ms"], row["ratio"]) == pytest.approx((16, 528, 33))
    assert on.resets == prefix.rounds and alone["arrival"] == "one after the other"


def test_prefix_caching_that_changes_tokens_is_refused(prefix, monkeypatch):
    def wrong(self, prompts, params):
        answers = PrefixEngine.generate(self, prompts, params)
        for answer in answers:
            answer.token_ids = [int(self.on)]
        return answers

    monkeypatch.setattr(batching, "LLM", type("Wrong", (PrefixEngine,), {"generate": wrong}))
    with pytest.raises(RuntimeError, match="changes the tokens"):
        batching.prefix_figures(prefix)


@pytest.mark.parametrize("fastest", batching.BATCH_TOKENS)
def test_transformers_gets_its_faster_setting(monkeypatch, fastest):
    transformers = pytest.importorskip("transformers")
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    model.to = model.eval = lambda *device: model
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: model)
    monkeypatch.setattr(batching, "resolve", lambda name: name)

    calls = []

    def run(self, requests, batch_tokens=None):
        """The first call of a setting is slow, as one that warms up is."""
        calls.append(batch_tokens)
        warm = calls.count(batch_tokens) > 1
        return Result([], [], (1.0 if batch_tokens == fastest else 2.0) if warm else 99.0)

    monkeypatch.setattr(batching.Transformers, "run", run)
    settings = batching.Transformers("m", "cpu", 2, Requests([[1]] * 3, [4] * 3)).settings
    assert settings["transformers_batch_tokens"] == fastest
    assert settings["transformers_tried_seconds"] == {n: 1.0 if n == fastest else 2.0 for n in batching.BATCH_TOKENS}


class Manager:
    """Transformers' continuous batching on a clock that stands but for what it does: each submission takes a second."""

    def __init__(self, clock):
        self.clock, self.ended = clock, []

    def add_request(self, prompt, max_new_tokens, record_timestamps):
        self.clock.now += 1
        times = [self.clock.now + 10, self.clock.now + 10 + max_new_tokens]
        self.ended.insert(0, SimpleNamespace(request_id=len(prompt), generated_tokens=prompt, timestamps=times))
        return len(prompt)

    def get_result(self, timeout):
        self.clock.now += 5
        return SimpleNamespace(is_finished=lambda: True, **vars(self.ended.pop(0)))


def test_transformers_has_room_for_what_runs_together_and_is_timed_from_the_first_submission(monkeypatch):
    clock, given = SimpleNamespace(now=100.0), {}
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock.now)

    @contextmanager
    def manager(generation_config, continuous_batching_config, **options):
        given.update(generation_config | continuous_batching_config)
        clock.now += 50  # its start
        yield Manager(clock)
        clock.now += 50  # its end

    theirs = object.__new__(batching.Transformers)
    theirs.library = SimpleNamespace(ContinuousBatchingConfig=dict, GenerationConfig=dict)
    theirs.model = SimpleNamespace(continuous_batching_context_manager=manager)
    theirs.max_num_seqs, theirs.batch_tokens = 3, 512
    prompts = [[1] * 300, [2] * 20, [3], [4] * 40]
    result = theirs.run(Requests(prompts, [5, 6, 9, 8]))
    assert result.token_ids == prompts
    assert result.first_token_seconds == [11, 12, 13, 14] and result.total_seconds == 4 + 4 * 5
    assert given["max_requests_per_batch"] == 3 and given["max_batch_tokens"] == 512
    # 305 tokens are two pages of 256.
    assert given["num_blocks"] * given["page_size"] >= 3 * 2 * 256 and not given["allow_block_sharing"]
    assert (given["max_new_tokens"], given["do_sample"]) == (9, False)
    assert theirs.run(Requests(prompts, [1] * 4), 2048).tokens and given["max_batch_tokens"] == 2048


def test_a_static_group_waits_for_the_one_before(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock.now)

    class Engine:
        def generate(self, prompts, params):
            clock.now += 10 * len(prompts)
            metrics = SimpleNamespace(time_to_first_token=1.0)
            answers = [prompt + [wanted.max_new_tokens] for prompt, wanted in zip(prompts, params)]
            return [SimpleNamespace(token_ids=answer, metrics=metrics) for answer in answers]

    requests = Requests([[1], [2], [3]], [5, 6, 7])
    result = batching.static(Engine(), requests, 2)
    assert result.token_ids == [[1, 5], [2, 6], [3, 7]] and result.tokens == 6
    assert result.first_token_seconds == [1.0, 1.0, 21.0] and result.total_seconds == 30


def test_requests_are_seeded_and_within_their_bounds():
    from qwen3 import LLM

    llm = LLM("tiny", device="cpu")
    first, second = batching.make_requests(llm, 20, 1), batching.make_requests(llm, 20, 1)
    assert first == second and first != batching.make_requests(llm, 20, 2)
    assert all(16 <= len(p) <= 256 for p in first.prompts) and all(16 <= n <= 128 for n in first.new_tokens)
