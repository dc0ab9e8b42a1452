"""What is measured: the list of cases, the most telling first. Knows no process and no result."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from bench.models import MODELS, Facts, ModelFile

Kind = Literal["short", "long", "rows", "start", "overhead"]
Peer = Literal["llama.cpp", "llama.cpp-avx2", "transformers", ""]

GENERATE = 64
ROWS = (1, 2, 4, 8, 16)
STEP_REPEATS = 5
START_CONTEXT = 512
"""Small, so that memory set aside for positions that are never read hides no copy of weights."""
SIZES: dict[Kind, int] = {"short": 512, "long": 4096}
"""Prompt lengths. Short: the tokens are generated from an empty cache; long: on top of the prompt."""


@dataclass(frozen=True)
class Case:
    """One model and one kind of work, ours and a peer by turns.

    short, long: a prompt, and GENERATE tokens one by one. rows: one step of 1, 2, ... rows of one sequence with the
    logits of all of them, as when a draft is verified. start: process start to first token, and memory then.
    overhead: an answer through the public interface beside bare steps; no peer.
    """

    model: str
    kind: Kind
    threads: int
    rounds: int = 5
    peer: Peer = "llama.cpp"
    isa: str = ""

    @property
    def name(self) -> str:
        """What --only matches and results are kept under."""
        other = {"llama.cpp-avx2": "", "transformers": "transformers"}.get(self.peer, "")
        return "/".join(part for part in (self.model, self.kind, f"t{self.threads}", self.isa, other) if part)

    @property
    def file(self) -> ModelFile:
        return MODELS[self.model]

    @property
    def prompt(self) -> int:
        """Prompt tokens of a short or long case."""
        return SIZES[self.kind]

    @property
    def depth(self) -> int:
        """Tokens in the cache before the generated ones."""
        return self.prompt if self.kind == "long" else 0

    @property
    def context(self) -> int:
        """Positions that must fit."""
        if self.kind in SIZES:
            return self.prompt + GENERATE
        return START_CONTEXT if self.kind == "start" else 32 + (STEP_REPEATS + 1) * sum(ROWS) + 2 * GENERATE


def matrix(threads: int) -> list[Case]:
    """Everything, with `threads` threads (and a little with one), in the order in which it is run."""
    return list(_matrix(threads))


def _matrix(threads: int) -> Iterator[Case]:
    types = ("Q4_0", "Q8_0", "Q4_K_M")
    small = [f"2b-{kind}" for kind in types]
    for model in small:
        yield Case(model, "short", threads)
    yield Case("270m-Q4_K_M", "short", threads)
    yield Case("270m-Q4_K_M", "start", threads)
    yield Case("2b-Q4_0", "start", threads)
    yield Case("2b-Q4_0", "overhead", threads, peer="")
    for model in small:
        yield Case(model, "short", threads, 3, "llama.cpp-avx2", "avx2")
    for model in small:
        yield Case(model, "rows", threads)
    yield Case("2b-Q4_0", "long", threads, 3)
    for model in ("2b-Q8_0", "2b-Q4_K_M"):
        yield Case(model, "long", threads, 2)
    for kind in types:
        yield Case(f"9b-{kind}", "short", threads, 3)
    yield Case("270m-Q4_K_M", "rows", threads)
    yield Case("270m-Q4_K_M", "long", threads, 3)
    for model in ("2b-Q4_0", "270m-Q4_K_M"):
        if threads > 1:
            yield Case(model, "short", 1, 3)
    yield Case("270m-Q4_K_M", "short", threads, 3, "transformers")
    yield Case("9b-Q4_0", "rows", threads, 3)
    for model in ("2b-Q8_0", "2b-Q4_K_M"):
        yield Case(model, "start", threads)
    for kind in types:
        yield Case(f"9b-{kind}", "long", threads, 1)
    for kind in types:
        yield Case(f"27b-{kind}", "short", threads, 2)


def quick(threads: int) -> list[Case]:
    """A subset that takes less than 3 minutes: for a look, not for the record."""
    chosen = [("2b-Q4_0", "short"), ("270m-Q4_K_M", "short"), ("2b-Q4_0", "rows"), ("270m-Q4_K_M", "start")]
    everything = matrix(threads)
    return [
        replace(c, rounds=2) for key in chosen for c in everything if (c.model, c.kind) == key and _plain(c, threads)
    ]


def _plain(case: Case, threads: int) -> bool:
    return case.threads == threads and not case.isa and case.peer == "llama.cpp"


def only(cases: Iterable[Case], patterns: Iterable[str]) -> list[Case]:
    """The cases that one of `patterns` names, matches as in a shell, or else is part of the name of; all for none."""
    cases, patterns = list(cases), list(patterns)
    names = {case.name for case in cases}
    wanted = [p if p in names or any(c in p for c in "*?[") else f"*{p}*" for p in patterns]
    return [case for case in cases if not wanted or any(fnmatch.fnmatch(case.name, p) for p in wanted)]


# What the reference machine does, for estimates: multiply-adds per second in prompts and bytes per second in decoding,
# of ours and of the peer with two threads.
_OUR_MACS, _PEER_MACS = 4.5e11, 1.6e11
_OUR_BYTES, _PEER_BYTES = 4.5e10, 3e10


def estimate(case: Case, facts: Facts) -> float:
    """Seconds that the case takes, within a factor of about 1.5."""
    slow = (2 / case.threads) * (2 if case.isa else 1)
    prompt = facts.prompt_macs * (1 / _OUR_MACS + bool(case.peer) / _PEER_MACS)
    step = facts.decode_bytes(case.depth if case.kind in SIZES else 0, 1) * (
        1 / _OUR_BYTES + bool(case.peer) / _PEER_BYTES
    )
    opened = 3 + 2 * facts.file_bytes / 1e9
    if case.kind == "start":
        return 25 + (case.rounds + 1) * (1 + facts.file_bytes / 1e9)
    if case.kind == "overhead":
        return opened + 2 * case.rounds * GENERATE * step
    if case.kind == "rows":
        return opened + slow * case.rounds * STEP_REPEATS * (8 * step + sum(ROWS) * prompt / 4) + 2 * case.rounds
    deep = 1.35 if case.kind == "long" else 1
    return (
        opened + 2 * case.rounds + slow * (case.rounds * (case.prompt * prompt * deep + GENERATE * step) + 64 * prompt)
    )
