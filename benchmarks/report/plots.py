"""Plots: from a record to the text of an SVG file, byte for byte the same for the same record."""

import io
import textwrap
from collections.abc import Callable
from statistics import fmean

import matplotlib
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import terminal
from .captions import caption, place
from .tables import question_of

BLUE, ORANGE, GREEN, PURPLE = "#3b82f6", "#e0712c", "#2da44e", "#a05cd6"
# Grey that stands out from white as much as from the dark background of GitHub; the background is left transparent.
GREY = "#767d87"
STYLE = {
    "svg.hashsalt": "qwen3", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": GREY, "grid.alpha": 0.25, "grid.linewidth": 0.6, "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), GREY
    ),
}  # fmt: skip


def plot(name: str, record: dict) -> str | None:
    """The SVG of the record `name`; None for a record without a plot."""
    # The ops record of a CPU has no kernels in it.
    if question_of(name) not in {*PLOTS, "terminal"} or name == "ops":
        return None
    if name == "terminal":
        return terminal.picture(record)
    with matplotlib.rc_context(STYLE):
        figure = draw(name, record)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Title": caption(name, record)},
        )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def draw(name: str, record: dict) -> Figure:
    """The figure of a record: its message, model and machine above it."""
    figure = PLOTS[question_of(name)](record)
    characters = int(figure.get_figwidth() * 13)
    lines = textwrap.wrap(caption(name, record) or "", characters) + textwrap.wrap(place(record), characters)
    figure.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
    return figure


def error_bars(axes: Axes, x: list[float], y: list[float], low: list[float], high: list[float]) -> None:
    """Bars from `low` to `high`, dark with a light edge: they stand out from colours and from either background."""
    below, above = ([abs(end - middle) for end, middle in zip(ends, y)] for ends in (low, high))
    bars = axes.errorbar(x, y, yerr=(below, above), fmt="none", ecolor="#24292f", elinewidth=1.6, capsize=4, zorder=4)
    edge = [patheffects.withStroke(linewidth=3.6, foreground="white")]
    for artist in bars.get_children():
        artist.set_path_effects(edge)


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]


def generate(record: dict) -> Figure:
    figures = record["figures"]
    cells = list(dict.fromkeys((f["phase"], f["batch"], f["context"]) for f in figures))
    dtypes = list(dict.fromkeys(f["dtype"] for f in figures))
    figure, [axes] = panels(1, max(6.0, 1.2 + 1.4 * len(cells)), 3.4)
    width = 0.8 / len(dtypes)
    for i, (dtype, color) in enumerate(zip(dtypes, (BLUE, ORANGE))):
        of_cell = {(f["phase"], f["batch"], f["context"]): f for f in figures if f["dtype"] == dtype}
        rows = [of_cell[cell] for cell in cells]
        places = [at + (i - (len(dtypes) - 1) / 2) * width for at in range(len(cells))]
        ratios = [f["ratio"] for f in rows]
        # The widest that the two sides' minima and maxima allow.
        low = [f["theirs_min_ms"] / f["ours_max_ms"] for f in rows]
        high = [f["theirs_max_ms"] / f["ours_min_ms"] for f in rows]
        axes.bar(places, ratios, width * 0.92, color=color, label=dtype)
        error_bars(axes, places, ratios, low, high)
        for at, ratio in zip(places, ratios):
            axes.text(at, 0.05, f"{ratio:.2f}", ha="center", va="bottom", color="white", fontweight="bold", fontsize=9)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    axes.annotate(
        "transformers",
        (1, 1),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )
    texts = {"decode": "decode\nbatch {1}\n{2} tokens before", "prefill": "prefill\n{2} tokens"}
    axes.set_xticks(range(len(cells)), [texts[cell[0]].format(*cell) for cell in cells])
    # Room for the legend above the highest bar.
    axes.set(ylim=(0, 1.2 * axes.get_ylim()[1]), ylabel="speed, times transformers")
    axes.tick_params(axis="x", length=0)
    axes.legend(loc="upper right", ncols=len(dtypes))
    return figure


def kv_cache(record: dict) -> Figure:
    figure, [axes] = panels(1, 6, 3.4)
    lengths = [f["context"] for f in record["figures"]]
    for side, label, color in (("without", "without the cache", ORANGE), ("with", "with the cache", BLUE)):
        low, middle, high = ([f[f"{side}_{mark}ms"] for f in record["figures"]] for mark in ("min_", "", "max_"))
        axes.plot(lengths, middle, marker="o", markersize=4, color=color, label=label, zorder=5)
        error_bars(axes, lengths, middle, low, high)
    axes.set(xscale="log", yscale="log", xlabel="tokens of text before (log scale)", ylabel="ms per token (log scale)")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    plain_numbers(axes)
    axes.grid(True)
    axes.legend()
    return figure


def serve(record: dict) -> Figure:
    figure, (speed, first, between) = panels(3, 9, 3.1)
    rates = [f["requests_per_second"] for f in record["figures"]]
    speed.plot(rates, [f["tokens_per_second"] for f in record["figures"]], marker="o", markersize=4, color=GREEN)
    speed.set(title="throughput", ylabel="tokens per second")
    waits = (first, "first_piece", "time to the first piece of text"), (between, "inter_piece", "time between pieces")
    for axes, name, title in waits:
        for percent, color in ((99, PURPLE), (90, ORANGE), (50, BLUE)):
            values = [f.get(f"{name}_p{percent}_ms") for f in record["figures"]]
            if None in values:
                continue
            axes.plot(rates, values, marker="o", markersize=4, color=color, label=f"p{percent}")
        axes.set(title=title, ylabel="ms")
        axes.legend()
    for axes in (speed, first, between):
        axes.set(xlabel="requests per second (log scale)", xscale="log", ylim=(0, None))
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.grid(True)
    return figure


def experts(record: dict) -> Figure:
    figure, (counts, load) = panels(2, 9.5, 3.5)
    distinct = [f for f in record["figures"] if f["figure"] == "distinct"]
    tokens = list(dict.fromkeys(f["tokens"] for f in distinct))
    uniform = [next(f["uniform"] for f in distinct if f["tokens"] == count) for count in tokens]
    counts.plot(tokens, uniform, color=GREY, linestyle="--", label="chosen at random (formula)")
    for batch, label, color in (
        ("unrelated", "tokens of unrelated places", BLUE),
        ("neighbours", "neighbouring tokens", ORANGE),
    ):
        means = [fmean(f["mean"] for f in distinct if (f["tokens"], f["batch"]) == (count, batch)) for count in tokens]
        counts.plot(tokens, means, marker="o", markersize=4, color=color, label=f"{label} (measured)")
    counts.set(xscale="log", xlabel="tokens in a step (log scale)", ylabel="distinct experts, mean of layers")
    counts.set_xticks(tokens, [f"{count}" for count in tokens])
    counts.minorticks_off()
    counts.set_ylim(0)
    counts.grid(True)
    counts.legend(fontsize=9)
    rows = [f for f in record["figures"] if f["figure"] == "load"]
    shares = [[n / fmean(f["tokens_per_expert"]) for n in f["tokens_per_expert"]] for f in rows]
    image = load.imshow(shares, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    load.set(xlabel="expert", ylabel="layer")
    load.set_yticks(range(len(rows)), [f["layer"] for f in rows])
    figure.colorbar(image, ax=load, label="tokens, times the mean of the layer")
    return figure


def ops(record: dict) -> Figure:
    figure, [axes] = panels(1, 7, 4.2)
    settings = record["settings"]
    rows = [f for f in record["figures"] if f["figure"] == "time" and f["side"] == "triton" and f.get("tflops")]
    for family, color in (("attention", BLUE), ("experts", ORANGE), ("projections", GREEN), ("others", PURPLE)):
        points = [(f["flops"] / f["bytes"], f["tflops"]) for f in rows if family_of(f["op"]) == family]
        if points:
            axes.scatter(*zip(*points), s=14, color=color, label=family, zorder=3)
    corner = settings["flops_per_second"] / settings["bytes_per_second"]
    ends = (0.1, corner, 10 * corner)
    roof = [min(x * settings["bytes_per_second"], settings["flops_per_second"]) / 1e12 for x in ends]
    axes.plot(ends, roof, color=GREY, label="measured limit")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations per byte that must move (log scale)",
        ylabel="TFLOP/s (log scale)",
    )
    axes.grid(True)
    axes.legend(loc="lower right")
    return figure


def family_of(op: str) -> str:
    names = {"attention": "attention", "moe": "experts", "route": "experts", "linear": "projections"}
    return next((family for part, family in names.items() if part in op), "others")


def plain_numbers(axes: Axes) -> None:
    """Ticks at 1, 2, 5, 10, ... of a logarithmic axis, written out."""
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, place: f"{value:g}"))


PLOTS: dict[str, Callable[[dict], Figure]] = {
    "generate": generate,
    "kv_cache": kv_cache,
    "serve": serve,
    "experts": experts,
    "ops": ops,
}
