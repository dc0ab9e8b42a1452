"""Results as Markdown. Knows no files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median

from bench.cases import ROWS, Case, matrix
from bench.models import MODELS
from bench.results import Measured, Result, leads, shares, step_ratios, values
from bench.targets import targets

Figures = Callable[[Measured], list[float]]
Column = tuple[str, str, Figures]
"""Heading, pattern of the median, and the figures it is of."""


def compact(results: Sequence[Result]) -> str:
    """The README's tables: every model with all threads, one table for each machine, and a sentence on how."""
    how = (
        f"Prompts of 512 tokens; 64 generated from an empty cache; {_threads(results[0])} threads; medians of rounds "
        "in which ours and llama.cpp, built for this machine, took turns. Peak: what the machine did in the same "
        "round, int8 products for prompts, bytes read for generation. [docs/benchmarks.md](docs/benchmarks.md) has "
        "long prompts, several rows, AVX2 only, start and memory, and what is aimed at."
    )
    return "\n".join(_short(result) for result in results) + f"\n{how}\n"


def full(results: Sequence[Result]) -> str:
    """All tables of the first result, each under a heading; of other machines the short one."""
    first, *others = results
    cases = first.cases()
    sections = {
        "What is to be reached": table(
            ("work", "asked", "seen", "met"), ([t.work, t.asked, *t.judge(cases)] for t in targets())
        ),
        "Prompts": _speeds(first, "pp", "of dot peak"),
        "Generation": _speeds(first, "tg", "of bandwidth"),
        "Steps of several rows": _columns(first, "rows", _STEPS),
        "Start and memory": _columns(first, "start", _STARTS),
        "Beside other programs": _speeds(first, "busy", ""),
        "The machine beside each case": _limits(first),
        "Notes": _notes(first),
        **{_cpu(one): f"{_short(one)}\n{_engines(one)}\n\n{_limits(one)}" for one in others},
    }
    parts = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n".join([f"{_machine(first)} {_engines(first)}\n", *parts])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column flush left, the others right. Empty without rows."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else ""


def cases_of(result: Result, *kinds: str) -> list[Measured]:
    """Those of the kinds, in the order of the matrix, however they were measured."""
    order = {case.name: place for place, case in enumerate(matrix(_threads(result)))}
    found = sorted(result.cases().items(), key=lambda item: order.get(item[0], len(order)))
    return [of for _, of in found if of.case.kind in kinds]


# ---- sentences -----------------------------------------------------------------------------------------------------


def _cpu(result: Result) -> str:
    """What is fastest depends on the first-level cache, so that is said too."""
    of = result.runs[0]["machine"]
    return f"{of['cpu']} ({of['target']}, {of['caches']['l1'] >> 10} KB of first-level cache)"


def _machine(result: Result) -> str:
    """When and where."""
    of = result.runs[0]["machine"]
    dates = sorted(run["date"] for run in result.runs)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    kind = " (a virtual machine: ratios count, not absolute figures)" if of["virtual"] else ""
    size = f"{of['cores']} cores, {of['memory_bytes'] / 2**30:.0f} GiB, {of['system']}"
    return f"Measured {when} on {_cpu(result)}, {size}{kind}."


def _engines(result: Result) -> str:
    commits = dict.fromkeys(run["commit"] for run in result.runs if run["commit"])
    software = ", ".join(f"{name} {number}" for name, number in result.runs[0]["software"].items())
    peers = dict.fromkeys(peer for run in result.runs for peer in run["peers"])
    return f"edge-gemma at {', '.join(commits) or 'an unknown state'}, {software}; {'; '.join(peers) or 'no peers'}."


def _notes(result: Result) -> str:
    """What a reader must know of single cases, and what was not measured."""
    said = [f"{case}: {note}" for case, note in result.said("note")]
    said += [f"{case} was skipped: {' '.join(reason.split()).rstrip('.')}" for case, reason in result.said("skipped")]
    return "".join(f"* {text}.\n" for text in said)


# ---- tables --------------------------------------------------------------------------------------------------------


def _short(result: Result) -> str:
    usual = [of for of in cases_of(result, "short") if of.case.threads == _threads(result) and not of.case.variant]
    shown = sorted(usual, key=lambda of: list(MODELS).index(of.case.model))
    rows = [[of.case.file.title, *_speed(of, "pp512"), *_speed(of, "tg64")] for of in shown]
    columns = ("llama.cpp", "ratio", "of peak")
    return f"{table(['model', 'prompt tok/s', *columns, 'generated tok/s', *columns], rows)}\n{_machine(result)}\n"


def _speeds(result: Result, prefix: str, limit: str) -> str:
    """Every measure of that prefix; the ratio of the median round, and what lies between the rounds."""
    rows = []
    for of in cases_of(result, "short", "long", "busy"):
        for measure in (name for name in of.measures() if name.startswith(prefix)):
            ours, peer, ratio, *share = _speed(of, measure, bool(limit))
            among = leads(of, measure)
            spread = f"{ratio} ({min(among):.2f} to {max(among):.2f})" if among else ""
            rows.append([_title(of.case), measure, ours, peer, spread, *share])
    return table(["model", "test", "tok/s", "peer", "ratio", *filter(None, [limit])], rows)


def _columns(result: Result, kind: str, columns: Sequence[Column]) -> str:
    rows = [
        [_title(of.case), *(shown(figures(of), pattern) for _, pattern, figures in columns)]
        for of in cases_of(result, kind)
    ]
    return table(["model", *(head for head, _, _ in columns)], rows)


def _scaled(scale: float, side: str, measure: str) -> Figures:
    return lambda of: [scale * value for value in values(of, measure, side)]


def _steps(side: str, one: str, several: str) -> list[Column]:
    ratios = {n: partial(step_ratios, measure=f"rows{n}", side=side) for n in ROWS[1:]}
    columns: list[Column] = [(one, "{:.1f} ms", _scaled(1e3, side, "rows1"))]
    return columns + [(several.format(n), "{:.2f}x", figures) for n, figures in ratios.items()]


_STEPS = [*_steps("ours", "one row", "{} rows"), *_steps("peer", "peer: 1", "peer: {}")]
_STARTS: list[Column] = [
    ("first token", "{:.2f} s", _scaled(1, "ours", "first_token")),
    ("peer", "{:.2f} s", _scaled(1, "peer", "first_token")),
    ("peer less import", "{:.2f} s", _scaled(1, "peer", "own_first_token")),
    ("first start ever", "{:.2f} s", _scaled(1, "ours", "cold")),
    ("peak memory", "{:.0f} MB", _scaled(1e-6, "ours", "peak")),
    ("peer", "{:.0f} MB", _scaled(1e-6, "peer", "peak")),
    ("of ours: model", "{:.0f} MB", _scaled(1e-6, "ours", "file")),
    ("anonymous", "{:.0f} MB", _scaled(1e-6, "ours", "anonymous")),
]


def _limits(result: Result) -> str:
    rows = []
    for of in cases_of(result, "short", "long", "rows", "overhead"):
        limits = [values(of, name, "limits") for name in ("read", "dot")]
        spreads = [f"{min(v) / 1e9:.0f} to {max(v) / 1e9:.0f}" for v in limits]
        rows.append([f"{_title(of.case)}, {of.case.kind}", *spreads])
    return table(["case", "read GB/s", "dot product GMAC/s"], rows)


# ---- cells ---------------------------------------------------------------------------------------------------------


def _speed(of: Measured, measure: str, limit: bool = True) -> list[str]:
    """Ours, the peer's, their ratio, the share of the limit."""
    sides = [values(of, measure, side) for side in ("ours", "peer")]
    cells = [shown(speeds, "{:.0f}" if speeds and median(speeds) >= 100 else "{:.1f}") for speeds in sides]
    return [*cells, shown(leads(of, measure), "{:.2f}"), *([shown(shares(of, measure), "{:.0%}")] if limit else [])]


def shown(figures: Sequence[float], pattern: str) -> str:
    """The median; empty if there are none."""
    return pattern.format(median(figures)) if figures else ""


def _threads(result: Result) -> int:
    return max((of.case.threads for of in result.cases().values()), default=0)


def _title(case: Case) -> str:
    """The model, and what is not as usual."""
    unusual = [f"{case.threads} thread{'s' if case.threads > 1 else ''}"]
    unusual += [case.isa.upper() + " only"] if case.isa else []
    unusual += ["beside transformers in bf16"] if case.peer == "transformers" else []
    return f"{case.file.title}, {', '.join(unusual)}"
