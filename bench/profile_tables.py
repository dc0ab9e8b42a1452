"""Where the time of a step goes, as Markdown: the `profile` cases of a result. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.cases import PROFILE_REPEATS
from bench.results import Measured, Result, values
from bench.tables import cases_of, table

HEAD = ("operation", "decode us", "share", "GB/s", "chunk of {:.0f}, ms", "share", "GMAC/s")


def profiles(results: Sequence[Result]) -> str:
    """A table for each profile, and what its steps come to."""
    return "\n" + "".join(_section(of) for one in results for of in cases_of(one, "profile", "profile-long"))


def _section(of: Measured) -> str:
    title = of.case.file.title + (f", after {of.case.depth} tokens" if of.case.depth else "")
    operations = dict.fromkeys(name.split("/")[1] for name in of.measures() if name.endswith("/us"))
    head = [name.format(_figure(of, "prefill/program/rows")) for name in HEAD]
    rows = ([name, *_decode(of, name), *_prefill(of, name)] for name in operations)
    return f"### {title}\n\n{table(head, rows)}\n{_sentences(of)}\n"


def _decode(of: Measured, operation: str) -> list[str]:
    us, size = (_figure(of, f"decode/{operation}/{what}") for what in ("us", "bytes"))
    if not us:
        return ["", "", ""]
    rate = size / us / 1e3
    return [f"{us:.0f}", f"{us / _sum(of, 'decode', 'us'):.1%}", f"{rate:.1f}" if rate >= 1 else ""]


def _prefill(of: Measured, operation: str) -> list[str]:
    us, macs = (_figure(of, f"prefill/{operation}/{what}") for what in ("us", "macs"))
    if not us:
        return ["", "", ""]
    return [f"{us / 1e3:.1f}", f"{us / _sum(of, 'prefill', 'us'):.1%}", f"{macs / us / 1e3:.0f}" if macs else ""]


def _sentences(of: Measured) -> str:
    """What the whole steps come to, beside the limits."""
    decode, prefill = (_figure(of, f"{step}/program/whole_us") for step in ("decode", "prefill"))
    read = _sum(of, "decode", "bytes") / decode / 1e3
    products = _sum(of, "prefill/matmul", "macs") / _sum(of, "prefill/matmul", "us") / 1e3
    bandwidth, peak = (_figure(of, name, "limits") / 1e9 for name in ("read", "dot"))
    names = ("program", "threads", "sampling", "detokenizing", "python")
    program, threads, sampling, detokenizing, python = (_figure(of, f"outside/{name}/each_us") for name in names)
    outside = threads + sampling + detokenizing + python
    machine = of.run["machine"]
    return (
        f"Decode step: {decode / 1e3:.2f} ms in the program, {read:.1f} GB/s of weights and cache, where a "
        f"plain pass over memory read {bandwidth:.1f} GB/s beside it ({read / bandwidth:.0%}). Chunk: "
        f"{prefill / 1e3:.1f} ms, {prefill / _figure(of, 'prefill/program/rows'):.0f} us a token; its products "
        f"{products:.0f} GMAC/s, {products / peak:.0%} of the {peak:.0f} of the bare instruction. Outside the program, "
        f"of a streamed token {outside / (outside + program):.1%}: waking the threads {threads:.0f} us, sampling "
        f"{sampling:.0f}, detokenizing {detokenizing:.0f}, Python {python:.0f}. ({of.run['date']}, {machine['cpu']}, "
        f"{machine['isa']}, {of.case.threads} threads, medians of {PROFILE_REPEATS}.)\n"
    )


def _figure(of: Measured, measure: str, side: str = "ours") -> float:
    """0 if it was not measured: an operation is not part of every step."""
    rounds = values(of, measure, side)
    return median(rounds) if rounds else 0.0


def _sum(of: Measured, prefix: str, what: str) -> float:
    """Over all operations whose name begins so."""
    return sum(_figure(of, name) for name in of.measures() if name.startswith(prefix) and name.endswith(f"/{what}"))
