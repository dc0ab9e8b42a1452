"""Results on disk, and what is computed from the rounds of a case. Knows no measuring and no targets.

A result is {"format", "machine", "software", "cases": {name: case}, "skipped": {name: reason}}. A case has what it was
(`Case`'s fields), the model's facts, and "rounds": a list of {"limits", "ours", "peer"}, each a dictionary of measures:

    pp512, tg64, tg64@4096      tokens per second, named as llama-bench does
    rows1, rows2, ...           seconds of one step
    first_token, cold           seconds from the start of a process; `cold` with no kernel compiled yet
    own_first_token             the same, less what the peer's Python needs to import it
    peak, file, anonymous       bytes resident at the first token; the model's pages; what no file backs
    step, answer                seconds per token: bare steps, and an answer with sampling and text
    read, dot                   the machine: bytes and multiply-adds per second
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = 2
FASTER_IS_MORE = ("pp", "tg", "read", "dot")

Record = dict[str, Any]


def load(path: Path) -> Record:
    """Raises ValueError for a file of another format."""
    result: Record = json.loads(path.read_text("utf-8"))
    if result.get("format") != FORMAT:
        raise ValueError(f"{path}: not a result of bench/side_by_side.py in format {FORMAT}")
    return result


def save(result: Record, path: Path) -> None:
    """Replace the file at once: an interruption leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    partial.replace(path)


def more_is_better(measure: str) -> bool:
    return measure.startswith(FASTER_IS_MORE)


def measures(case: Record, side: str = "ours") -> list[str]:
    """Names, in the order measured, of what at least one round has on `side`."""
    return list(dict.fromkeys(name for each in case["rounds"] for name in each.get(side, {})))


def values(case: Record, measure: str, side: str = "ours") -> list[float]:
    """Of every round that has it."""
    return [each[side][measure] for each in case["rounds"] if measure in each.get(side, {})]


def median(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None


def leads(case: Record, measure: str, theirs: str | None = None) -> list[float]:
    """Of every round that has both sides, how many times better ours was; `theirs`: the peer's measure if another."""
    theirs = theirs or measure
    pairs = [
        (each["ours"][measure], each["peer"][theirs])
        for each in case["rounds"]
        if measure in each.get("ours", {}) and theirs in each.get("peer", {})
    ]
    return [ours / peer if more_is_better(measure) else peer / ours for ours, peer in pairs]


def bandwidth_shares(case: Record, measure: str) -> list[float]:
    """Of every round, the bytes read per second by decoding, over what the machine read in that round."""
    return _shares(case, measure, "read", case["facts"]["decode_bytes"])


def peak_shares(case: Record, measure: str) -> list[float]:
    """Of every round, the products per second of a prompt, over the machine's in that round."""
    return _shares(case, measure, "dot", case["facts"]["prompt_macs"])


def _shares(case: Record, measure: str, limit: str, per_token: float) -> list[float]:
    rounds = [each for each in case["rounds"] if measure in each.get("ours", {}) and limit in each.get("limits", {})]
    return [each["ours"][measure] * per_token / each["limits"][limit] for each in rounds]


def step_ratios(case: Record, rows: int, side: str = "ours") -> list[float]:
    """Of every round, the time of a step of `rows` rows over that of one row."""
    return [each[side][f"rows{rows}"] / each[side]["rows1"] for each in case["rounds"] if each.get(side)]


def overheads(case: Record) -> list[float]:
    """Of every round, what an answer's token took more than a bare step, as a share of the step."""
    return [each["ours"]["answer"] / each["ours"]["step"] - 1 for each in case["rounds"]]
