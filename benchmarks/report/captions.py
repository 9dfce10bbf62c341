"""Titles and alt texts of the plots: the message in one sentence with numbers, and the machine."""

from collections.abc import Callable
from statistics import fmean, median

from .tables import of_kind, question_of, where


def caption(name: str, record: dict) -> str | None:
    """The message of the record's picture; None for a record without one."""
    make = CAPTIONS.get(question_of(name))
    return None if make is None else make(record)


def place(record: dict) -> str:
    """Model and machine of a picture."""
    settings = record["settings"]
    model = settings.get("model") or ", ".join(settings.get("models", ())) or "embedded model"
    dtype = settings.get("dtype")
    return f"{model}{f' in {dtype}' if dtype else ''} · {where(record)}"


def generate(record: dict) -> str:
    parts = []
    for phase in ("decode", "prefill"):
        for dtype in dict.fromkeys(f["dtype"] for f in record["figures"]):
            ratios = [f["ratio"] for f in record["figures"] if (f["phase"], f["dtype"]) == (phase, dtype)]
            if ratios:
                parts.append(f"{phase} in {dtype} {over(ratios)}")
    return f"Times the speed of transformers: {', '.join(parts)}"


def over(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def kv_cache(record: dict) -> str:
    first, last = record["figures"][0], record["figures"][-1]
    return (
        f"After {last['context']:,} tokens a token takes {last['with_ms']:.1f} ms with the KV cache and "
        f"{last['without_ms']:.1f} ms without; after {first['context']:,}, {first['with_ms']:.1f} and "
        f"{first['without_ms']:.1f} ms"
    )


def serve(record: dict) -> str:
    parts = [
        f"{f['tokens_per_second']:,.0f} tokens/s and a first piece after {f['first_piece_p50_ms']:,.0f} ms (median) at "
        f"{f['requests_per_second']:g} requests/s"
        for f in record["figures"]
    ]
    return "; ".join(parts)


def experts(record: dict) -> str:
    rows = [f for f in of_kind(record, "distinct") if f["batch"] == "unrelated"]
    total = len(of_kind(record, "load")[0]["tokens_per_expert"])
    parts = []
    for tokens in dict.fromkeys(f["tokens"] for f in rows):
        mean = fmean(f["mean"] for f in rows if f["tokens"] == tokens)
        parts.append(f"{mean:.1f} for {tokens}")
    return f"Distinct experts of {total} that unrelated tokens hit: {', '.join(parts)}"


def ops(record: dict) -> str:
    rows = [f for f in of_kind(record, "time") if f["side"] == "triton" and f.get("tflops")]
    shares = [f["fraction_of_limit"] for f in rows]
    return f"The kernels reach {median(shares):.0%} of the measured limit (median of {len(shares)} sizes)"


def terminal(record: dict) -> str:
    lines = "".join(event["text"] for event in record["figures"] if event["stream"] == "stderr").splitlines()
    speed = next((line.partition(" · ")[0] for line in lines if line.startswith("decode")), "")
    return f"{record['settings']['command']}{f': {speed}' if speed else ''}"


CAPTIONS: dict[str, Callable[[dict], str]] = {
    "generate": generate,
    "kv_cache": kv_cache,
    "serve": serve,
    "experts": experts,
    "ops": ops,
    "terminal": terminal,
}
