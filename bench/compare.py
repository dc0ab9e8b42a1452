"""What a change did: two results of `side_by_side.py`, measure by measure.

    python bench/compare.py BEFORE.json AFTER.json

For every case that both have: ours before and after, the change, and whether it is beyond the spread, which is when
no round of one is within the rounds of the other, of at least three. Where a peer was measured too, its own change
shows how the machine drifted; then the lead over the peer is what is compared, round by round, and the drift drops out.
Steps of several rows are compared by their time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record
from bench.record import Record, more_is_better
from bench.tables import table

FEWEST_ROUNDS = 3
"""Two rounds that happen to lie close together would make anything a change."""
NOTHING = 0.005
"""A smaller change is none, however steady."""
UNCOMPARED = {"file", "anonymous", "own_first_token"}


@dataclass(frozen=True)
class Change:
    """One measure. Times better than before (above 1 is better), of ours, of the peer, and of ours less the drift."""

    case: str
    measure: str
    before: float
    after: float
    ours: float
    peer: float | None
    corrected: float
    verdict: str
    """"better" or "worse" beyond the spread, else "no", or "too few rounds"."""


def changes(before: Record, after: Record) -> Iterator[Change]:
    """Every measure that both results have."""
    for name, old in before["cases"].items():
        new = after["cases"].get(name)
        for measure in record.measures(old) if new else ():
            if new and measure not in UNCOMPARED and record.values(new, measure):
                yield _change(name, measure, old, new)


def _change(name: str, measure: str, old: Record, new: Record) -> Change:
    a, b = (record.values(case, measure) for case in (old, new))
    lead_a, lead_b = (record.leads(case, measure) for case in (old, new))
    both = bool(lead_a and lead_b)
    compared_a, compared_b = (lead_a, lead_b) if both else (_goodness(measure, a), _goodness(measure, b))
    return Change(
        case=name,
        measure=measure,
        before=_middle(a),
        after=_middle(b),
        ours=_gain(measure, a, b),
        peer=_gain(measure, *(record.values(case, measure, "peer") for case in (old, new))) if both else None,
        corrected=_middle(compared_b) / _middle(compared_a),
        verdict=verdict(compared_a, compared_b),
    )


def verdict(before: list[float], after: list[float]) -> str:
    """Of figures of which more is better."""
    if min(len(before), len(after)) < FEWEST_ROUNDS:
        return "too few rounds"
    if abs(_middle(after) / _middle(before) - 1) < NOTHING:
        return "no"
    if min(after) > max(before):
        return "better"
    return "worse" if max(after) < min(before) else "no"


def _goodness(measure: str, numbers: list[float]) -> list[float]:
    return numbers if more_is_better(measure) else [1 / number for number in numbers]


def _gain(measure: str, before: list[float], after: list[float]) -> float:
    ratio = _middle(after) / _middle(before)
    return ratio if more_is_better(measure) else 1 / ratio


def _middle(numbers: list[float]) -> float:
    middle = record.median(numbers)
    assert middle is not None
    return middle


def rendered(found: list[Change]) -> str:
    """As a table; ratios above 1 are better."""
    head = ["case", "measure", "before", "after", "ours", "peer", "ours less drift", "beyond the spread"]
    rows = [
        [
            c.case,
            c.measure,
            f"{c.before:.4g}",
            f"{c.after:.4g}",
            f"{c.ours:.3f}",
            "" if c.peer is None else f"{c.peer:.3f}",
            f"{c.corrected:.3f}",
            c.verdict,
        ]
        for c in found
    ]
    return table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Show what changed between two results.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    found = list(changes(record.load(args.before), record.load(args.after)))
    if not found:
        print("the two have no case in common", file=sys.stderr)
        return 1
    print(rendered(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
