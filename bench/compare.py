"""What a change did: two results of `side_by_side.py`, measure by measure.

    python bench/compare.py BEFORE.jsonl AFTER.jsonl

For every case that both have: ours before and after, the change, and whether it is beyond the spread, which is when
no round of one is within the rounds of the other, of at least three. Where a peer was measured too, its own change
shows how the machine drifted; then the lead over the peer is what is compared, round by round, and the drift drops out.
Steps of several rows are compared by their time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.results import Measured, Result, leads, more_is_better, values
from bench.tables import shown, table

HEAD = ("case", "measure", "before", "after", "ours", "peer", "ours less drift", "beyond the spread")
FEWEST_ROUNDS = 3
"""Two rounds that happen to lie close together would make anything a change."""
NOTHING = 0.005
"""A smaller change is none, however steady."""
UNCOMPARED = ("file", "anonymous", "own_first_token")


def changes(before: Result, after: Result) -> Iterator[list[str]]:
    """A row for every measure that both results have; ratios above 1 are better."""
    new = after.cases()
    for name, old in before.cases().items():
        both = [m for m in old.measures() if name in new and new[name]["ours", m]]
        for measure in both:
            if measure not in UNCOMPARED and not measure.endswith(("/bytes", "/macs", "/rows")):
                yield [name, measure, *_change(measure, old, new[name])]


def _change(measure: str, old: Measured, new: Measured) -> list[str]:
    ours, peer = ([_goodness(of, measure, side) for of in (old, new)] for side in ("ours", "peer"))
    led = [leads(of, measure) for of in (old, new)]
    compared = led if all(led) else ours
    seen = [shown(values(of, measure), "{:.4g}") for of in (old, new)]
    gains = [f"{median(after) / median(before):.3f}" if after and before else "" for before, after in (ours, peer)]
    return [*seen, *gains, f"{median(compared[1]) / median(compared[0]):.3f}", verdict(*compared)]


def _goodness(of: Measured, measure: str, side: str) -> list[float]:
    """Of every round, a figure of which more is better."""
    return [value if more_is_better(measure) else 1 / value for value in values(of, measure, side)]


def verdict(before: list[float], after: list[float]) -> str:
    """ "better" or "worse" beyond the spread, else "no"; of figures of which more is better."""
    if min(len(before), len(after)) < FEWEST_ROUNDS:
        return "too few rounds"
    if abs(median(after) / median(before) - 1) < NOTHING:
        return "no"
    if min(after) > max(before):
        return "better"
    return "worse" if max(after) < min(before) else "no"


def main() -> int:
    parser = argparse.ArgumentParser(description="Show what changed between two results.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    try:
        rows = list(changes(Result.load(args.before), Result.load(args.after)))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not rows:
        print("the two have no case in common", file=sys.stderr)
        return 1
    print(table(HEAD, rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
