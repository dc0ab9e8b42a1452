"""Results: lines of JSON, one a measurement, and what is computed from them. Knows no measuring and no table.

    {"format": 3, "date": ..., "commit": ..., "machine": {...}, "software": {...}, "peers": [...]}    a run begins
    {"case": "2b-Q4_0/short/t2", "side": "ours", "measure": "tg64", "round": 0, "value": 22.3}
    {"case": "2b-Q4_0/short/t2", "note": "..."}                                    what a reader must know
    {"case": "27b-Q4_0/short/t2", "skipped": "..."}                                why it was not measured

side: ours, peer; limits: the machine in that round, several times; model: facts about its file; run. Measures:

    pp512, tg64, tg64@4096      tokens per second, named as llama-bench does; busy1: beside one busy program
    rows1, rows2, ...           seconds of one step
    first_token, cold           seconds from the start of a process; `cold` with no kernel compiled yet
    own_first_token             the same, less what the peer's Python needs to import it
    peak, file, anonymous       bytes resident at the first token; the model's pages; what no file backs
    step, answer                seconds per token: bare steps, and an answer with sampling and text
    decode/OPERATION/us         of a profile: microseconds, bytes, macs of an operation; also of a chunk, and outside
    read, dot                   the machine: bytes and multiply-adds per second
    seconds                     the run: of the whole case
    decode_bytes, prompt_macs   the model: read for a token; multiplied for a token of a prompt
    kv_bytes_at_start           the model: keys and values of all positions of a start
    token_bytes                 the model: weights read for a token
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from bench.cases import Case

FORMAT = 3
STORED = Path(__file__).resolve().parent / "results"
Series = dict[int, float]
"""Round -> value."""
Line = dict[str, Any]


def measurement(case: Case, side: str, measure: str, number: int, value: float) -> Line:
    """The line of one value of a round."""
    return {"case": case.name, "side": side, "measure": measure, "round": number, "value": value}


@dataclass(frozen=True)
class Measured:
    """The measurements of one case, by side and measure, and the run they are of."""

    case: Case
    run: Line
    series: dict[tuple[str, str], Series]

    def __getitem__(self, key: tuple[str, str]) -> Series:
        """Empty if there are none."""
        return self.series.get(key, {})

    def measures(self, side: str = "ours") -> list[str]:
        """Names, in the order measured."""
        return [measure for of, measure in self.series if of == side]

    def fact(self, measure: str) -> float:
        return self["model", measure][0]


@dataclass
class Result:
    """The lines of a file, in their order."""

    lines: list[Line] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises ValueError for a file of another format, and OSError."""
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            fits = lines[0]["format"] == FORMAT
        except (ValueError, LookupError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{path}: not a result of bench/side_by_side.py in format {FORMAT}")
        return cls(lines)

    def save(self, path: Path) -> None:
        """Replace the file at once: an interruption leaves the old one or the new one, and no case in parts."""
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")
        partial.replace(path)

    @property
    def runs(self) -> list[Line]:
        return [line for line in self.lines if "format" in line]

    def said(self, what: str) -> list[tuple[str, str]]:
        """Cases with their "note", or why they were "skipped"."""
        return [(line["case"], line[what]) for line in self.lines if what in line]

    def forget(self, case: str) -> None:
        self.lines = [line for line in self.lines if line.get("case") != case]

    def cases(self) -> dict[str, Measured]:
        """By name. What was measured several times in a round is the mean."""
        grouped: dict[str, dict[tuple[str, str], dict[int, list[float]]]] = {}
        runs: dict[str, Line] = {}
        for line in self.lines:
            if "format" in line:
                run = line
            elif "value" in line:
                series = grouped.setdefault(line["case"], {}).setdefault((line["side"], line["measure"]), {})
                series.setdefault(line["round"], []).append(line["value"])
                runs[line["case"]] = run
        return {
            case: Measured(Case.named(case), runs[case], {key: _means(series) for key, series in of.items()})
            for case, of in grouped.items()
        }


def _means(series: dict[int, list[float]]) -> Series:
    return {number: mean(values) for number, values in series.items()}


def stored() -> list[Result]:
    """The results in bench/results, one for each CPU, that with most cases first."""
    results = [Result.load(path) for path in sorted(STORED.glob("*.jsonl"))]
    return sorted(results, key=lambda result: -len(result.cases()))


def seconds_a_round() -> dict[str, float]:
    """What each case took for the first of the stored results."""
    cases = stored()[0].cases()
    seconds = {name: of["run", "seconds"].get(0) for name, of in cases.items()}
    rounds = {name: max(len(series) for series in of.series.values()) for name, of in cases.items()}
    return {name: taken / rounds[name] for name, taken in seconds.items() if taken}


# ---- figures of a case: one for each round that has what they are of -------------------------------------------------


def ratios(above: Series, below: Series, scale: float = 1.0) -> list[float]:
    return [scale * value / below[number] for number, value in above.items() if number in below]


def more_is_better(measure: str) -> bool:
    return measure.startswith(("pp", "tg", "busy"))


def values(of: Measured, measure: str, side: str = "ours") -> list[float]:
    return list(of[side, measure].values())


def leads(of: Measured, measure: str) -> list[float]:
    """How many times better ours was than the peer."""
    ours, peer = of["ours", measure], of["peer", measure]
    return ratios(ours, peer) if more_is_better(measure) else ratios(peer, ours)


def shares(of: Measured, measure: str) -> list[float]:
    """What ours took of the machine's limit in that round: of its products for a prompt, else of its bytes read."""
    limit, cost = ("dot", "prompt_macs") if measure.startswith("pp") else ("read", "decode_bytes")
    return ratios(of["ours", measure], of["limits", limit], of.fact(cost))


def step_ratios(of: Measured, measure: str, side: str = "ours") -> list[float]:
    """The time of a step of several rows over that of one row."""
    return ratios(of[side, measure], of[side, "rows1"])


def overheads(of: Measured, measure: str) -> list[float]:
    """What an answer's token took more than a bare step, as a share of the step."""
    return [ratio - 1 for ratio in ratios(of["ours", measure], of["ours", "step"])]


def own_memory(of: Measured, measure: str) -> list[float]:
    """Megabytes resident that are neither the file's pages nor the cache."""
    pages, cache = of["ours", "file"], of.fact("kv_bytes_at_start")
    return [(value - pages[number] - cache) / 1e6 for number, value in of["ours", measure].items() if number in pages]


def unneeded_memory(of: Measured, measure: str) -> list[float]:
    """Megabytes resident beside the weights that a token reads, whatever is there of the file, and the cache."""
    needed = of.fact("token_bytes") + of.fact("kv_bytes_at_start")
    return [(value - needed) / 1e6 for value in values(of, measure)]
