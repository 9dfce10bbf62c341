"""Writes the tables of both README files and the plots, from the records in benchmarks/results alone.

A table stands between the lines `<!-- table NAME -->` and `<!-- end -->`, NAME being the name of a record; other text
is not changed. Plots go to benchmarks/plots/NAME.svg, and `![...](.../plots/NAME.svg)` gets its message as the text for
readers. The files are README.md and benchmarks/README.md.
"""

import argparse
import re
from pathlib import Path

from qwen3.errors import Qwen3Error

from ..common import REPOSITORY, RESULTS, load_records, replace
from ..provenance import changed as changed_sources
from .captions import caption
from .plots import plot
from .tables import question_of, table

README_FILES = [REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md"]
BEGIN, END = "<!-- table ", "<!-- end -->"
PICTURE = re.compile(r"!\[[^\]]*\]\((?P<path>[^)\s]*plots/(?P<name>[\w.-]+)\.svg)\)")
TABLE = re.compile(r"^<!-- table (?P<name>\S+) -->\n(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where something would change; name the records that are older than the code",
    )
    parser.add_argument("--readme", type=Path, nargs="+", default=README_FILES, help="files with tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--plots", type=Path, default=RESULTS.with_name("plots"), help="folder of the plots")


def run(args: argparse.Namespace) -> int:
    records = load_records(args.results)
    wanted = {path: with_pictures(with_tables(read(path), records, path), records, path) for path in args.readme}
    plots = {args.plots / f"{name}.svg": plot(name, record) for name, record in records.items()}
    wanted |= {path: svg for path, svg in plots.items() if svg is not None}
    gone = sorted(set(args.plots.glob("*.svg")) - set(wanted))
    changed = [path for path, content in wanted.items() if not path.is_file() or path.read_text("utf-8") != content]
    for path in changed:
        print(f"{path}: {'does not follow from the records' if args.check else 'written'}")
    for path in gone:
        print(f"{path}: {'has no record' if args.check else 'removed, it has no record'}")
    for name, record in records.items():
        if "sources" not in record:
            print(f"{name}: the record does not say which files made it: `python -m benchmarks {question_of(name)}`")
        elif old := changed_sources(record, REPOSITORY):
            more = f" and {len(old) - 1} more" if len(old) > 1 else ""
            command = f"python -m benchmarks {question_of(name)}"
            print(f"{name}: table and plot are older than the code ({old[0]}{more} changed): `{command}`")
    if args.check:
        return int(bool(changed or gone))
    for path in changed:
        replace(path, wanted[path])
    for path in gone:
        path.unlink()
    if not changed and not gone:
        print("nothing has changed")
    return 0


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be read ({error.strerror}): name the files with --readme") from None


def _record(records: dict[str, dict], name: str, what: str) -> dict:
    if name not in records:
        raise Qwen3Error(f"{what} {name} has no record: run `python -m benchmarks {question_of(name)}` first")
    return records[name]


def with_pictures(text: str, records: dict[str, dict], source: Path) -> str:
    """Puts each picture's message into `text` as its alt text. Raises Qwen3Error for a picture without a record."""

    def filled(match: re.Match) -> str:
        name = match["name"]
        message = (
            (caption(name, _record(records, name, f"{source}: picture")) or "").replace("[", "(").replace("]", ")")
        )
        return f"![{message}]({match['path']})"

    return PICTURE.sub(filled, text)


def with_tables(text: str, records: dict[str, dict], source: Path) -> str:
    """`text` with its tables replaced. Raises Qwen3Error for a table without a record or without its end."""

    def filled(match: re.Match) -> str:
        name = match["name"]
        return f"{BEGIN}{name} -->\n\n{table(name, _record(records, name, f'{source}: table'))}\n\n{END}"

    found = TABLE.findall(text)
    if not len(found) == text.count(BEGIN) == text.count(END) or any(BEGIN in body for _, body in found):
        raise Qwen3Error(f"{source}: each line `{BEGIN}NAME -->` needs a line `{END}` before the next one")
    return TABLE.sub(filled, text)
