"""Tables: from a record to Markdown."""

from collections.abc import Callable, Iterable
from statistics import fmean, median

from qwen3.errors import Qwen3Error

SIDES = {"ours": "this engine", "theirs": "transformers"}


def table(name: str, record: dict) -> str:
    """The table of the record `name` and the machine below it. Raises Qwen3Error for a record without a table."""
    if question_of(name) not in TABLES:
        raise Qwen3Error(f"the record {name} has no table: there are tables for {', '.join(TABLES)}")
    return f"{TABLES[question_of(name)](record)}\n\n{measured_on(record)}"


def question_of(name: str) -> str:
    """The question of a record: generate for "generate_small" and "generate_small.cuda", ops for "ops.cuda"."""
    return "generate" if name.startswith("generate_") else name.removesuffix(".cuda")


def where(record: dict) -> str:
    """The processor that computed: a card, or a CPU and its threads."""
    machine = record["machine"]
    if machine["gpu"] and record["settings"].get("device") != "cpu":
        return machine["gpu"]
    return f"{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"


def measured_on(record: dict) -> str:
    machine = record["machine"]
    named = (("PyTorch", "torch"), ("Triton", "triton"), ("transformers", "transformers"), ("Python", "python"))
    versions = [f"{name} {machine[key]}" for name, key in named if machine[key]]
    commit = f", commit `{machine['commit'][:9]}{'+' * machine['commit'].endswith('+')}`" if machine["commit"] else ""
    return f"<sub>{where(record)}; {', '.join(versions)}{commit}</sub>"


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` columns are text and flush left, the others flush right."""
    header = list(header)
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (header, rule, *rows))


def spread(row: dict, side: str, digits: int = 2) -> str:
    """Median and, in brackets, minimum to maximum, in milliseconds."""
    middle, low, high = (f"{row[f'{side}_{mark}ms']:,.{digits}f}" for mark in ("", "min_", "max_"))
    return f"{middle} ({low} to {high})"


def mark(row: dict, name: str, digits: int = 1) -> str:
    """A percentile; empty where too few values lie beyond it."""
    return f"{row[name]:,.{digits}f}" if name in row else ""


def bandwidth(record: dict) -> str:
    row = record["figures"][0]
    low, middle, high = (f"{row[f'{mark}bytes_per_second'] / 1e9:,.1f}" for mark in ("min_", "", "max_"))
    return markdown(("", "GB/s"), [("a large copy, bytes read and written", f"{middle} ({low} to {high})")])


def generate(record: dict) -> str:
    header = (
        "",
        "dtype",
        "times as fast as transformers",
        "ms, this engine",
        "ms, transformers",
        "tokens/s",
        "of the copy bandwidth",
        "transformers' fastest",
    )
    rows = []
    for f in record["figures"]:
        cell = (
            f"decode, batch {f['batch']}, {f['context']} before"
            if f["phase"] == "decode"
            else f"prefill of {f['context']}"
        )
        share = f"{f['fraction_of_copy']:.0%}" if "fraction_of_copy" in f else ""
        rows.append(
            (
                cell,
                f["dtype"],
                f"**{f['ratio']:.2f}**",
                spread(f, "ours"),
                spread(f, "theirs"),
                f"{f['ours_tokens_per_second']:,.1f}",
                share,
                f["transformers"],
            )
        )
    return markdown(header, rows, 2)


def kv_cache(record: dict) -> str:
    header = ("tokens of text", "ms a token with the cache", "without", "times as long")
    rows = [
        (f"{f['context']:,}", spread(f, "with"), spread(f, "without"), f"{f['ratio']:.1f}") for f in record["figures"]
    ]
    return markdown(header, rows, 0)


def load(record: dict) -> str:
    settings = record["settings"]
    size = f"{settings['checkpoint_bytes'] / 1e9:.2f} GB of {settings['dtype']}"
    header = (size, "the file", "ms to the first token", "of that, ms to load", "MB of memory added")
    rows = [
        (name, f["cache"], spread(f, side, 0), f"{f[f'{side}_load_ms']:,.0f}", f"{f[f'{side}_peak_bytes'] / 1e6:,.0f}")
        for f in record["figures"]
        for side, name in SIDES.items()
    ]
    return markdown(header, rows, 2)


def serve(record: dict) -> str:
    header = ("requests/s", "tokens/s", "first piece, p50 ms", "p90 ms", "between pieces, p50 ms", "p99 ms")
    marks = ("first_piece_p50_ms", "first_piece_p90_ms", "inter_piece_p50_ms", "inter_piece_p99_ms")
    rows = [
        (f"{f['requests_per_second']:g}", f"{f['tokens_per_second']:,.1f}", *(mark(f, name) for name in marks))
        for f in record["figures"]
    ]
    return markdown(header, rows, 0)


def eventloop(record: dict) -> str:
    header = ("while", "longest delay, ms")
    rows = [(f["situation"], spread(f, "delay", 1)) for f in record["figures"]]
    return markdown(header, rows)


def batching(record: dict) -> str:
    header = ("", "tokens/s", "times a static batch", "first token, p50 ms", "p90 ms")
    rows = [
        (
            f["side"],
            f"{f['tokens_per_second']:,.1f}",
            f"{f['speed_of_static']:.2f}",
            mark(f, "first_token_p50_ms", 0),
            mark(f, "first_token_p90_ms", 0),
        )
        for f in of_kind(record, "batching")
    ]
    shared = of_kind(record, "prefix")
    header_of_prefix = (
        f"{shared[0]['requests']} requests that share {shared[0]['system_tokens']} tokens",
        "first token, ms",
        "without prefix caching",
        "times as long",
    )
    prefix = [(f["arrival"], spread(f, "with", 1), spread(f, "without", 1), f"{f['ratio']:.1f}") for f in shared]
    return f"{markdown(header, rows)}\n\n{markdown(header_of_prefix, prefix)}"


def scheduler(record: dict) -> str:
    header = ("sequences that run", "ms a step", "us a sequence")
    rows = [
        (f"{f['sequences']:,}", f"{f['median_us'] / 1e3:.3f}", f"{f['us_per_sequence']:.2f}") for f in record["figures"]
    ]
    return markdown(header, rows, 0)


def fits(record: dict) -> str:
    """Rows are models, columns are cards."""
    cards = list(dict.fromkeys((f["card"], f["memory_gb"]) for f in record["figures"]))
    header = ("", "weights, GB", "KV, bytes a token", *(f"{card}, {gigabytes} GB" for card, gigabytes in cards))
    rows = []
    for model in dict.fromkeys(f["model"] for f in record["figures"]):
        here = [f for f in record["figures"] if f["model"] == model]
        room = [f"{f['tokens']:,} tokens" if f["tokens"] else "no" for f in here]
        rows.append((model, f"{here[0]['weight_bytes'] / 1e9:.1f}", f"{here[0]['kv_bytes_per_token']:,}", *room))
    return markdown(header, rows)


def experts(record: dict) -> str:
    distinct, steps = of_kind(record, "distinct"), of_kind(record, "step")
    larger = [model for model in dict.fromkeys(f["model"] for f in steps) if model != record["settings"]["model"]]
    header = (
        "tokens in a step",
        "distinct experts, unrelated places",
        "neighbours",
        "chosen at random",
        *(f"GB of weights, {model} (computed)" for model in larger),
    )
    rows = []
    for tokens in dict.fromkeys(f["tokens"] for f in distinct):
        here = [f for f in distinct if f["tokens"] == tokens]
        means = [fmean(f["mean"] for f in here if f["batch"] == kind) for kind in ("unrelated", "neighbours")]
        read = [f["weight_bytes"] for model in larger for f in steps if (f["model"], f["tokens"]) == (model, tokens)]
        numbers = (*means, here[0]["uniform"])
        rows.append((tokens, *(f"{x:.1f}" for x in numbers), *(f"{count / 1e9:.1f}" for count in read)))
    return markdown(header, rows, 0)


def verify(record: dict) -> str:
    header = (
        "dtype",
        "backend",
        "largest RMS error of a layer",
        "transformers' own",
        "RMS error of the logits",
        "transformers' own",
        "same next token",
        "contract",
    )
    rows = []
    for dtype, backend in dict.fromkeys((f["dtype"], f["backend"]) for f in record["figures"]):
        *layers, logits = (f for f in record["figures"] if (f["dtype"], f["backend"]) == (dtype, backend))
        worst = max(layers, key=lambda f: f["rms_error"])
        own = [f"{f['transformers_rms_error']:.1e}" if dtype != "float32" else "" for f in (worst, logits)]
        kept = "kept" if all(f["within"] for f in (*layers, logits)) else "left"
        rows.append(
            (
                dtype,
                backend,
                f"{worst['rms_error']:.1e}",
                own[0],
                f"{logits['rms_error']:.1e}",
                own[1],
                f"{logits['same_argmax']:.1%}",
                kept,
            )
        )
    return markdown(header, rows, 2)


def ops(record: dict) -> str:
    """Our fastest backend in the record beside each other side and the limit, for each op.

    Only the last model of the record, and the ops that were timed on more than one side.
    """
    timed = [f for f in of_kind(record, "time") if "median_us" in f]
    timed = [f for f in timed if f["model"] == timed[-1]["model"]]
    ours = next(name for name in ("triton", "cpu", "reference") if any(f["side"] == name for f in timed))
    others = [side for side in dict.fromkeys(f["side"] for f in timed) if side != ours]
    header = ("model", "operation", "sizes", *(f"times as fast as {side}" for side in others), "of the limit")
    rows = []
    for model, op in dict.fromkeys((f["model"], f["op"]) for f in timed):
        by_side: dict[str, dict[str, dict]] = {side: {} for side in (ours, *others)}
        for f in timed:
            if (f["model"], f["op"]) == (model, op):
                by_side[f["side"]][f["setting"]] = f
        mine = by_side.pop(ours)
        ratios = [
            [theirs[size]["median_us"] / mine[size]["median_us"] for size in theirs if size in mine]
            for theirs in by_side.values()
        ]
        if not any(ratios):
            continue
        limits = [f["fraction_of_limit"] for f in mine.values()]
        cells = (over_sizes(values, ".2f") for values in ratios)
        rows.append((model, f"`{op}`", len(mine), *cells, over_sizes(limits, ".0%")))
    text = (
        f"Medians over the sizes, in brackets the range; ours is {ours}. The limit is the bandwidth of a large copy or "
    )
    text += "the speed of a large matmul: what fits into a cache can be above 100%."
    return f"{text}\n\n{markdown(header, rows, 2)}"


def over_sizes(values: list[float], form: str) -> str:
    """Median and range; empty without values."""
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def of_kind(record: dict, figure: str) -> list[dict]:
    return [f for f in record["figures"] if f["figure"] == figure]


TABLES: dict[str, Callable[[dict], str]] = {
    "bandwidth": bandwidth,
    "generate": generate,
    "kv_cache": kv_cache,
    "load": load,
    "serve": serve,
    "eventloop": eventloop,
    "batching": batching,
    "experts": experts,
    "verify": verify,
    "ops": ops,
    "scheduler": scheduler,
    "fits": fits,
}
