"""A result as Markdown. Knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench import record
from bench.cases import ROWS, matrix
from bench.record import Record
from bench.targets import targets

ORDER = ("270m", "2b", "9b", "27b")


HEAD = ("model", "prompt tok/s", "llama.cpp", "ratio", "of peak", "generated tok/s", "llama.cpp", "ratio", "of peak")


def compact(*results: Record) -> str:
    """The README's tables: every model with all threads, one table for each machine, and a sentence on how."""
    how = (
        f"Prompts of 512 tokens; 64 generated from an empty cache; {_threads(results[0])} threads; medians of rounds "
        "in which ours and llama.cpp, built for this machine, took turns. Peak: what the machine did in the same "
        "round, int8 products for prompts, bytes read for generation. [docs/benchmarks.md](docs/benchmarks.md) has "
        "long prompts, several rows, AVX2 only, start and memory, and what is aimed at."
    )
    return "\n".join(_short(result) for result in results) + f"\n{how}\n"


def _short(result: Record) -> str:
    shown = sorted((c for c in _cases(result, "short") if _ordinary(c, result)), key=_size)
    rows = [[case["title"], *_speed_cells(case, "pp512"), *_speed_cells(case, "tg64")] for case in shown]
    return f"{table(HEAD, rows)}\n{machine(result)}\n"


def full(first: Record, *others: Record) -> str:
    """All tables, each under a heading; of other machines the short one."""
    parts = [
        machine(first) + " " + _engines(first) + "\n",
        "## What is to be reached\n\n" + _targets(first),
        "## Prompts\n\n" + _speeds(first, "pp"),
        "## Generation\n\n" + _speeds(first, "tg"),
        "## Steps of several rows\n\n" + _steps(first),
        "## Start and memory\n\n" + _starts(first),
        "## The machine beside each case\n\n" + _limits(first),
        _notes(first),
        *(f"## {one['machine']['cpu']}\n\n{_short(one)}\n{_engines(one)}\n\n{_limits(one)}" for one in others),
    ]
    return "\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column flush left, the others right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine(result: Record) -> str:
    """When and where, in a sentence."""
    of = result["machine"]
    dates = sorted({case["time"][:10] for case in result["cases"].values()}) or ["never"]
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    kind = " (a virtual machine: ratios count, not absolute figures)" if of["virtual"] else ""
    size = f"{of['cores']} cores, {of['memory_bytes'] / 2**30:.0f} GiB, {of['system']}"
    return f"Measured {when} on {of['cpu']}, {size}{kind}."


def _engines(result: Record) -> str:
    software = ", ".join(f"{name} {number}" for name, number in result["software"].items())
    told = [case["engines"] for case in result["cases"].values() if case["engines"]]
    peers = sorted({each["peer"]["engine"] for each in told if "peer" in each})
    commits = sorted({case["commit"] for case in result["cases"].values() if case["commit"]})
    return f"edge-gemma at {', '.join(commits) or 'an unknown state'}, {software}; {'; '.join(peers) or 'no peers'}."


def _targets(result: Record) -> str:
    rows = []
    for target in targets():
        seen, met = target.judge(result)
        rows.append([target.work, target.asked, seen, met])
    return table(["work", "asked", "seen", "met"], rows)


def _speeds(result: Record, prefix: str) -> str:
    rows = []
    for case in _cases(result, "short", "long"):
        measure = next(name for name in record.measures(case) if name.startswith(prefix))
        cells = _speed_cells(case, measure)
        rows.append([_title(case), measure, *cells[:2], _spread(record.leads(case, measure)), cells[3]])
    limit = "of dot peak" if prefix == "pp" else "of bandwidth"
    return table(["model", "test", "tok/s", "peer", "ratio", limit], rows)


def _steps(result: Record) -> str:
    head = ["model", "one row", *(f"{n} rows" for n in ROWS[1:]), *(f"peer: {n}" for n in ROWS)]
    rows = []
    for case in _cases(result, "rows"):
        cells = [_title(case)]
        for side in ("ours", "peer"):
            cells.append(_show(record.median(record.values(case, "rows1", side)), "{:.1f} ms", 1e3))
            cells += [_show(record.median(record.step_ratios(case, n, side)), "{:.2f}x") for n in ROWS[1:]]
        rows.append(cells)
    return table(head, rows)


def _starts(result: Record) -> str:
    head = ["model", "first token", "peer", "peer less import", "first start ever"]
    head += ["peak memory", "peer", "of ours: model", "anonymous"]
    rows = []
    for case in _cases(result, "start"):
        ours = {name: record.median(record.values(case, name)) for name in record.measures(case)}
        peer = {name: record.median(record.values(case, name, "peer")) for name in record.measures(case, "peer")}
        seconds = [ours.get("first_token"), peer.get("first_token"), peer.get("own_first_token"), ours.get("cold")]
        memory = [ours.get("peak"), peer.get("peak"), ours.get("file"), ours.get("anonymous")]
        cells = [*(_show(s, "{:.2f} s") for s in seconds), *(_show(m, "{:.0f} MB", 1e-6) for m in memory)]
        rows.append([_title(case), *cells])
    return table(head, rows)


def _limits(result: Record) -> str:
    rows = []
    for case in _cases(result):
        read, dot = (record.values(case, name, "limits") for name in ("read", "dot"))
        if read:
            spread = [f"{min(v) / 1e9:.0f} to {max(v) / 1e9:.0f}" for v in (read, dot)]
            rows.append([f"{_title(case)}, {case['kind']}", *spread])
    return table(["case", "read GB/s", "dot product GMAC/s"], rows)


def _notes(result: Record) -> str:
    """What a reader must know of single cases, and what was not measured."""
    noted = [f"* {name}: {note}.\n" for name, case in result["cases"].items() for note in case["notes"]]
    noted += [f"* {name} was skipped: {_one_line(reason)}.\n" for name, reason in result["skipped"].items()]
    return "## Notes\n\n" + "".join(noted) if noted else ""


# ---- cells -------------------------------------------------------------------------------------------------------


def _speed_cells(case: Record, measure: str) -> list[str]:
    """Ours, the peer's, their ratio, the share of the limit."""
    shares = record.peak_shares if measure.startswith("pp") else record.bandwidth_shares
    sides = [record.median(record.values(case, measure, side)) for side in ("ours", "peer")]
    return [
        *(_show(speed, "{:.0f}" if speed and speed >= 100 else "{:.1f}") for speed in sides),
        _show(record.median(record.leads(case, measure)), "{:.2f}"),
        _show(record.median(shares(case, measure)), "{:.0f}%", 100),
    ]


def _show(figure: float | None, pattern: str, scale: float = 1) -> str:
    return "" if figure is None else pattern.format(figure * scale)


def _spread(figures: list[float]) -> str:
    """The median, and what lies between the rounds."""
    middle = record.median(figures)
    return "" if middle is None else f"{middle:.2f} ({min(figures):.2f} to {max(figures):.2f})"


def _cases(result: Record, *kinds: str) -> list[Record]:
    """In the order of the matrix, however they were measured; all for no kind."""
    order = {case.name: place for place, case in enumerate(matrix(_threads(result)))}
    named = sorted(result["cases"].items(), key=lambda item: order.get(item[0], len(order)))
    return [case for _, case in named if not kinds or case["kind"] in kinds]


def _ordinary(case: Record, result: Record) -> bool:
    """Compared with llama.cpp for this machine, with all threads."""
    return case["threads"] == _threads(result) and not case["isa"] and case["peer"] == "llama.cpp"


def _threads(result: Record) -> int:
    return max((case["threads"] for case in result["cases"].values()), default=0)


def _size(case: Record) -> int:
    return ORDER.index(case["model"].partition("-")[0])


def _title(case: dict[str, Any]) -> str:
    """The model, and what is not as usual."""
    unusual = [f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}"]
    unusual += [case["isa"].upper() + " only"] if case["isa"] else []
    unusual += ["beside transformers in bf16"] if case["peer"] == "transformers" else []
    return f"{case['title']}, {', '.join(unusual)}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
