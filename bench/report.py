"""Put all results in bench/results into the documents, between their markers.

python bench/report.py            # rewrite the tables, those of the result with most cases first
python bench/report.py --check    # exit 1 if the tables there are others
python bench/report.py --print RESULT.jsonl ...     # only show all tables of these
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.profile_tables import profiles
from bench.results import STORED, Result, stored
from bench.tables import compact, full

ROOT = STORED.parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
DOCUMENTS = {"README.md": compact, "docs/benchmarks.md": full, "docs/performance.md": profiles}


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
    parser.add_argument("--print", nargs="+", type=Path, metavar="RESULT", help="change nothing; show these as tables")
    args = parser.parse_args()
    if args.print:
        try:
            results = [Result.load(path) for path in args.print]
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(full(results) + profiles(results))
        return 0
    results, wrong = stored(), 0
    for name, generate in DOCUMENTS.items():
        text = (ROOT / name).read_text("utf-8")
        wanted = filled(text, generate(results))
        if wanted != text and args.check:
            print(f"{name} does not show bench/results; `python bench/report.py` makes it", file=sys.stderr)
            wrong = 1
        elif wanted != text:
            (ROOT / name).write_text(wanted, "utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
