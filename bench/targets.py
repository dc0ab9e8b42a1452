"""What the runtime has to reach on the reference machine, and whether a result shows it. Knows no measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import record
from bench.record import Record

KINDS = ("Q4_0", "Q8_0", "Q4_K_M")
ROW_BOUNDS = {2: 1.15, 4: 1.3, 8: 1.6, 16: 2.5}
PROMPT_LEADS = {"Q4_0": 2.8, "Q8_0": 4.0, "Q4_K_M": 2.8}


@dataclass(frozen=True)
class Check:
    """One figure of a case, and its bound. `values` are of the rounds; their median counts."""

    values: Callable[[Record], list[float]]
    bound: float
    text: str
    """The bound and the figure in words; `{}` stands for the number."""
    at_least: bool = True

    def seen(self, case: Record) -> float | None:
        return record.median(self.values(case))

    def met(self, figure: float) -> bool:
        return figure >= self.bound if self.at_least else figure <= self.bound


@dataclass(frozen=True)
class Target:
    """Something asked of one case. One of `checks` suffices."""

    work: str
    model: str
    kind: str
    checks: tuple[Check, ...]
    isa: str = ""

    @property
    def asked(self) -> str:
        return " or ".join(c.text.format(_sign(c) + _number(c, c.bound)) for c in self.checks)

    def judge(self, result: Record) -> tuple[str, str]:
        """What was seen, and "yes", "no" or "not measured"."""
        case = find(result, self.model, self.kind, self.isa)
        figures = [(c, c.seen(case)) for c in self.checks] if case else []
        known = [(c, figure) for c, figure in figures if figure is not None]
        if not known:
            return "", "not measured"
        seen = ", ".join(c.text.format(_number(c, figure)) for c, figure in known)
        return seen, "yes" if any(c.met(figure) for c, figure in known) else "no"


def find(result: Record, model: str, kind: str, isa: str = "") -> Record | None:
    """The case with the most threads; one with transformers as its peer is none of these."""
    cases = [
        case
        for case in result["cases"].values()
        if (case["model"], case["kind"], case["isa"]) == (model, kind, isa) and case["peer"] != "transformers"
    ]
    return max(cases, key=lambda case: case["threads"], default=None)


def targets() -> list[Target]:
    return [*_speed("2b"), *_deep(), *_rows(), *_speed("9b"), *_real(), *_avx2(), *_starts(), *_memory(), _overhead()]


def _speed(size: str) -> Iterator[Target]:
    for kind in KINDS:
        model, title = f"{size}-{kind}", f"{size.upper()} {kind}"
        yield Target(f"decode, {title}", model, "short", (_bandwidth("tg64"),))
        yield Target(f"decode, {title}", model, "short", (_lead("tg64", 1.7),))
    for kind in KINDS:
        model, title = f"{size}-{kind}", f"{size.upper()} {kind}"
        yield Target(f"prompt of 512, {title}", model, "short", (_peak("pp512"),))
        yield Target(f"prompt of 512, {title}", model, "short", (_lead("pp512", PROMPT_LEADS[kind]),))


def _deep() -> Iterator[Target]:
    yield Target("prompt of 4096, 2B Q4_0", "2b-Q4_0", "long", (_lead("pp4096", 3.0),))
    for kind in KINDS:
        yield Target(f"decode after 4096, 2B {kind}", f"2b-{kind}", "long", (_bandwidth("tg64@4096"),))


def _rows() -> Iterator[Target]:
    for kind in KINDS:
        for rows, bound in ROW_BOUNDS.items():

            def ratio(case: Record, rows: int = rows) -> list[float]:
                return record.step_ratios(case, rows)

            check = Check(ratio, bound, "{}x one row", at_least=False)
            yield Target(f"a step of {rows} rows, 2B {kind}", f"2b-{kind}", "rows", (check,))


def _real() -> Iterator[Target]:
    yield Target("decode, 270M", "270m-Q4_K_M", "short", (_lead("tg64", 1.7),))
    yield Target("prompt of 512, 270M", "270m-Q4_K_M", "short", (_lead("pp512", 2.5),))


def _avx2() -> Iterator[Target]:
    for kind in KINDS:
        either = (_lead("tg64", 1.3), _bandwidth("tg64"))
        yield Target(f"decode with AVX2 only, 2B {kind}", f"2b-{kind}", "short", either, "avx2")
        yield Target(f"prompt with AVX2 only, 2B {kind}", f"2b-{kind}", "short", (_lead("pp512", 1.3),), "avx2")


def _starts() -> Iterator[Target]:
    def lead(case: Record) -> list[float]:
        return record.leads(case, "own_first_token")

    for model, title, bound in (("270m-Q4_K_M", "270M", 1.0), ("2b-Q4_0", "2B Q4_0", 1.2)):
        yield Target(f"start to first token, {title}", model, "start", (_seconds("first_token", bound),))
        yield Target(f"start to first token, {title}", model, "start", (Check(lead, 1.0, "{}x llama.cpp"),))
    yield Target("first start ever", "2b-Q4_0", "start", (_seconds("cold", 20.0),))


def _memory() -> Iterator[Target]:
    def own(case: Record) -> list[float]:
        """Resident bytes that are neither the file's pages nor the cache."""
        rounds = [each["ours"] for each in case["rounds"] if "peak" in each["ours"]]
        return [(each["peak"] - each["file"] - case["facts"]["kv_bytes_at_start"]) / 1e6 for each in rounds]

    check = Check(own, 100.0, "{} MB beside file and cache", at_least=False)
    for model, title in (("270m-Q4_K_M", "270M"), *((f"2b-{kind}", f"2B {kind}") for kind in KINDS)):
        yield Target(f"memory at first token, {title}", model, "start", (check,))


def _overhead() -> Target:
    check = Check(record.overheads, 0.03, "{} of a step", at_least=False)
    return Target("sampling, text and Python, 2B Q4_0", "2b-Q4_0", "overhead", (check,))


def _bandwidth(measure: str) -> Check:
    return Check(lambda case: record.bandwidth_shares(case, measure), 0.85, "{} of the read bandwidth")


def _peak(measure: str) -> Check:
    return Check(lambda case: record.peak_shares(case, measure), 0.55, "{} of the dot-product peak")


def _lead(measure: str, bound: float) -> Check:
    return Check(lambda case: record.leads(case, measure), bound, "{}x llama.cpp")


def _seconds(measure: str, bound: float) -> Check:
    return Check(lambda case: record.values(case, measure), bound, "{} s", at_least=False)


def _sign(check: Check) -> str:
    return "≥ " if check.at_least else "≤ "


def _number(check: Check, figure: float) -> str:
    if check.text.endswith((" bandwidth", " peak", " of a step")):
        return f"{100 * figure:.0f}%" if check.bound > 0.1 else f"{100 * figure:.1f}%"
    return f"{figure:.0f}" if "MB" in check.text else f"{figure:.2f}"
