"""Put results of `side_by_side.py` into the README and docs/benchmarks.md, between their markers.

python bench/report.py            # rewrite the tables from all that is in bench/results, the longest result first
python bench/report.py --check    # exit 1 if the tables there are others
python bench/report.py --print    # only show them
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record, tables

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def stored() -> list[record.Record]:
    """The results in bench/results, one for each CPU, that with most cases first."""
    paths = sorted((ROOT / "bench/results").glob("20*.json"))
    return sorted((record.load(path) for path in paths), key=lambda result: -len(result["cases"]))


def documents(results: list[record.Record]) -> dict[Path, str]:
    """What belongs between the markers of each file."""
    return {ROOT / "README.md": tables.compact(*results), ROOT / "docs" / "benchmarks.md": tables.full(*results)}


def filled(text: str, generated: str) -> str:
    """`text` with `generated` between its markers. Raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{generated}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the tables of figures.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file has other tables")
    parser.add_argument("--print", action="store_true", help="change nothing; show what docs/benchmarks.md would get")
    args = parser.parse_args()
    results = stored()
    if args.print:
        print(tables.full(*results))
        return 0
    wrong = 0
    for path, generated in documents(results).items():
        text = path.read_text("utf-8")
        wanted = filled(text, generated)
        if args.check and wanted != text:
            print(
                f"{path.name} does not show bench/results; `python bench/report.py` makes it",
                file=sys.stderr,
            )
            wrong = 1
        elif not args.check:
            path.write_text(wanted, "utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
