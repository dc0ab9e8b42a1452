"""What is measured: the list of cases, the most telling first. Knows no process and no result."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bench.models import MODELS, ModelFile

GENERATE = 64
ROWS = (1, 2, 4, 8, 16)
STEP_REPEATS = 5
PROFILE_REPEATS = 5
START_CONTEXT = 512
"""Small, so that memory set aside for positions that are never read hides no copy of weights."""
SHORT, LONG = 512, 4096
"""Prompt lengths. Short: the tokens are generated from an empty cache; long: on top of the prompt."""
BUSY_SECONDS = 6.0
"""Of decoding, beside so many busy programs."""
ALONE = ("overhead", "profile", "profile-long")
GEMMA4 = [name for name in MODELS if name.startswith("g4-")]
PEERS = {"avx2": "llama.cpp-avx2", "transformers": "transformers"}


@dataclass(frozen=True)
class Case:
    """One model and one kind of work, ours and a peer by turns.

    short, long: a prompt, and GENERATE tokens one by one. rows: one step of 1, 2, ... rows of one sequence with the
    logits of all of them, as when a draft is verified. start: process start to first token, and memory then.
    busy: decoding beside programs that never rest. overhead: an answer through the public interface beside bare steps;
    profile, profile-long: each operation of a decode step and of a chunk; these have no peer.
    `variant` avx2: both sides without AVX-512; transformers: that is the peer.
    """

    model: str
    kind: str
    threads: int
    rounds: int = 5
    variant: str = ""

    @classmethod
    def named(cls, name: str) -> Case:
        """The case whose `name` it is."""
        model, kind, threads, *variant = name.split("/")
        return cls(model, kind, int(threads[1:]), variant="".join(variant))

    @property
    def name(self) -> str:
        """What --only matches and results are kept under."""
        return "/".join(part for part in (self.model, self.kind, f"t{self.threads}", self.variant) if part)

    @property
    def file(self) -> ModelFile:
        return MODELS[self.model]

    @property
    def peer(self) -> str:
        return "" if self.kind in ALONE else PEERS.get(self.variant, "llama.cpp")

    @property
    def isa(self) -> str:
        """The instruction set; empty for the machine's best."""
        return self.variant if self.variant == "avx2" else ""

    @property
    def prompt(self) -> int:
        return LONG if self.kind.endswith("long") else SHORT

    @property
    def depth(self) -> int:
        """Tokens in the cache before the generated ones."""
        return LONG if self.kind.endswith("long") else 0

    @property
    def context(self) -> int:
        """Positions that must fit."""
        rows = 32 + (STEP_REPEATS + 1) * sum(ROWS)
        sizes = {"start": START_CONTEXT, "busy": LONG, "rows": rows, "overhead": rows}
        return sizes.get(self.kind, self.prompt + GENERATE)


def matrix(threads: int) -> list[Case]:
    """Everything, with `threads` threads (and a little with one), in the order in which it is run."""
    small, large, huge = ([f"{size}-{kind}" for kind in ("Q4_0", "Q8_0", "Q4_K_M")] for size in ("2b", "9b", "27b"))
    real, first = "270m-Q4_K_M", "2b-Q4_0"
    return [
        *(Case(model, "short", threads) for model in (*small, real)),
        *(Case(model, "start", threads) for model in (real, first)),
        Case(first, "overhead", threads),
        *(Case(model, "short", threads, 3, "avx2") for model in small),
        *(Case(model, "rows", threads) for model in small),
        *(Case(model, "long", threads, 3 if model == first else 2) for model in small),
        *(Case(model, "short", threads, 3) for model in large),
        Case(real, "rows", threads),
        Case(real, "long", threads, 3),
        *(Case(model, "short", 1, 3) for model in (first, real) if threads > 1),
        Case(real, "short", threads, 3, "transformers"),
        Case(large[0], "rows", threads, 3),
        *(Case(model, "start", threads) for model in small[1:]),
        Case(first, "profile", threads, 1),
        Case(first, "profile-long", threads, 1),
        Case(real, "profile", threads, 1),
        *(Case(real, "busy", count, 3) for count in sorted({threads, 1}, reverse=True)),
        *(Case(model, "short", threads, 3) for model in GEMMA4),
        Case(GEMMA4[0], "start", threads),
        *(Case(model, "long", threads, 1) for model in (GEMMA4[0], "g4-26b-6-layers-Q4_0")),
        *(Case(model, "long", threads, 1) for model in large),
        *(Case(model, "short", threads, 2) for model in huge),
    ]


def quick(threads: int) -> list[Case]:
    """A subset that takes less than 3 minutes: for a look, not for the record."""
    chosen = [("2b-Q4_0", "short"), ("270m-Q4_K_M", "short"), ("2b-Q4_0", "rows"), ("270m-Q4_K_M", "start")]
    return [Case(model, kind, threads, 2) for model, kind in chosen]


def only(cases: Iterable[Case], patterns: Iterable[str], rounds: int | None = None) -> list[Case]:
    """The cases that one of `patterns` names, matches as in a shell, or else is part of the name of; all for none."""
    cases, patterns = list(cases), list(patterns)
    names = {case.name for case in cases}
    wanted = [p if p in names or any(c in p for c in "*?[") else f"*{p}*" for p in patterns]
    found = [case for case in cases if not wanted or any(fnmatch.fnmatch(case.name, p) for p in wanted)]
    return [replace(case, rounds=rounds) for case in found] if rounds else found
