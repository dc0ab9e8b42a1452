"""What the runtime has to reach on the reference machine, and whether a result shows it. Knows no measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from bench.cases import GEMMA4, Case
from bench.models import MODELS
from bench.results import Measured, leads, overheads, own_memory, shares, step_ratios, unneeded_memory, values

KINDS = ("Q4_0", "Q8_0", "Q4_K_M")
ROW_BOUNDS = {2: 1.15, 4: 1.3, 8: 1.6, 16: 2.5}
PROMPT_LEADS = {"Q4_0": 2.8, "Q8_0": 4.0, "Q4_K_M": 2.8}


@dataclass(frozen=True)
class Quantity:
    """A figure of every round of a case, of which the median counts, and how it is said."""

    figures: Callable[[Measured, str], list[float]]
    sign: str
    words: str

    def met(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.sign == "≥" else figure <= bound


LEAD = Quantity(leads, "≥", "{:.2f}x llama.cpp")
BANDWIDTH = Quantity(shares, "≥", "{:.0%} of the read bandwidth")
PEAK = Quantity(shares, "≥", "{:.0%} of the dot-product peak")
ROWS = Quantity(step_ratios, "≤", "{:.2f}x one row")
SECONDS = Quantity(values, "≤", "{:.2f} s")
MEMORY = Quantity(own_memory, "≤", "{:.0f} MB beside file and cache")
UNNEEDED = Quantity(unneeded_memory, "≤", "{:.0f} MB beside weights read and cache")
OVERHEAD = Quantity(overheads, "≤", "{:.1%} of a step")


@dataclass(frozen=True)
class Target:
    """A measure asked of a model's case of one kind; one of the quantities and their bounds suffices."""

    work: str
    model: str
    kind: str
    measure: str
    bounds: dict[Quantity, float]
    variant: str = ""

    @property
    def asked(self) -> str:
        return " or ".join(f"{of.sign} {of.words.format(bound)}" for of, bound in self.bounds.items())

    def judge(self, cases: dict[str, Measured]) -> tuple[str, str]:
        """What was seen, and "yes", "no" or "not measured"."""
        found = self.find(cases)
        figures = {of: of.figures(found, self.measure) for of in self.bounds} if found else {}
        seen = {of: median(rounds) for of, rounds in figures.items() if rounds}
        if not seen:
            return "", "not measured"
        met = any(of.met(figure, self.bounds[of]) for of, figure in seen.items())
        return ", ".join(of.words.format(figure) for of, figure in seen.items()), "yes" if met else "no"

    def find(self, cases: dict[str, Measured]) -> Measured | None:
        """The case with the most threads."""

        def fits(case: Case) -> bool:
            return (case.model, case.kind, case.variant) == (self.model, self.kind, self.variant)

        found = [of for of in cases.values() if fits(of.case)]
        return max(found, key=lambda of: of.case.threads, default=None)


def targets() -> Iterator[Target]:
    """In the order of the table."""
    yield from _speed("2b")
    yield Target("prompt of 4096, 2B Q4_0", "2b-Q4_0", "long", "pp4096", {LEAD: 3.0})
    for kind in KINDS:
        yield Target(f"decode after 4096, 2B {kind}", f"2b-{kind}", "long", "tg64@4096", {BANDWIDTH: 0.85})
    for kind in KINDS:
        for rows, bound in ROW_BOUNDS.items():
            yield Target(f"a step of {rows} rows, 2B {kind}", f"2b-{kind}", "rows", f"rows{rows}", {ROWS: bound})
    yield from _speed("9b")
    yield Target("decode, 270M", "270m-Q4_K_M", "short", "tg64", {LEAD: 1.7})
    yield Target("prompt of 512, 270M", "270m-Q4_K_M", "short", "pp512", {LEAD: 2.5})
    for kind in KINDS:
        model, title = f"2b-{kind}", f"with AVX2 only, 2B {kind}"
        yield Target(f"decode {title}", model, "short", "tg64", {LEAD: 1.3, BANDWIDTH: 0.85}, "avx2")
        yield Target(f"prompt {title}", model, "short", "pp512", {LEAD: 1.3}, "avx2")
    for model, title, bound in (("270m-Q4_K_M", "270M", 1.0), ("2b-Q4_0", "2B Q4_0", 1.2)):
        yield Target(f"start to first token, {title}", model, "start", "first_token", {SECONDS: bound})
        yield Target(f"start to first token, {title}", model, "start", "own_first_token", {LEAD: 1.0})
    yield Target("first start ever", "2b-Q4_0", "start", "cold", {SECONDS: 20.0})
    for model, title in (("270m-Q4_K_M", "270M"), *((f"2b-{kind}", f"2B {kind}") for kind in KINDS)):
        yield Target(f"memory at first token, {title}", model, "start", "peak", {MEMORY: 100.0})
    yield Target("sampling, text and Python, 2B Q4_0", "2b-Q4_0", "overhead", "answer", {OVERHEAD: 0.03})
    yield from _gemma4()


def _gemma4() -> Iterator[Target]:
    for model in GEMMA4:
        title = MODELS[model].title
        yield Target(f"decode, {title}", model, "short", "tg64", {BANDWIDTH: 0.85})
        prompts = {LEAD: 1.5} if "26b" in model else {PEAK: 0.55}
        yield Target(f"prompt of 512, {title}", model, "short", "pp512", prompts)
    title = MODELS["g4-e2b-Q4_0"].title
    yield Target(f"memory at first token, {title}", "g4-e2b-Q4_0", "start", "peak", {UNNEEDED: 150.0})


def _speed(size: str) -> Iterator[Target]:
    for kind in KINDS:
        for quantity, bound in ((BANDWIDTH, 0.85), (LEAD, 1.7)):
            yield Target(f"decode, {size.upper()} {kind}", f"{size}-{kind}", "short", "tg64", {quantity: bound})
    for kind in KINDS:
        for quantity, bound in ((PEAK, 0.55), (LEAD, PROMPT_LEADS[kind])):
            yield Target(f"prompt of 512, {size.upper()} {kind}", f"{size}-{kind}", "short", "pp512", {quantity: bound})
