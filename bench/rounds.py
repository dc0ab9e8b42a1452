"""One case measured: the processes it needs, a warm-up, and its rounds. Knows no files of results and no targets."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.cases import GENERATE, ROWS, SIZES, START_CONTEXT, STEP_REPEATS, Case
from bench.models import Facts
from bench.processes import WORKERS, Worker, first_token, our_environment

PROMPT = "The quick brown fox jumps over the lazy dog, and then it"
WARM_PROMPT, WARM_TOKENS = 64, 4
LIMIT_SECONDS = 0.3
"""For each limit, several times in each round."""
TURN = 16
"""Tokens that an engine generates before it is the other's turn."""

Say = Callable[[str], None]
Measures = dict[str, float]
Round = dict[str, Measures]
Figure = tuple[str, str, float]
"""Side ("ours", "peer", or "limits"), measure, value."""


class Skipped(Exception):  # noqa: N818  (an answer, not a fault)
    """The case cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Setup:
    """Where things are. An empty interpreter: that peer is not there, and ours is measured alone."""

    models: Path
    llama: str
    llama_avx2: str
    transformers: str
    transformers_model: Path | None


@dataclass
class Bench:
    """The processes of one case. `peer` is None where there is none."""

    case: Case
    ours: Worker
    peer: Worker | None
    machine: Worker

    @property
    def sides(self) -> dict[str, Worker]:
        return {"ours": self.ours} | ({"peer": self.peer} if self.peer else {})


def measure(case: Case, setup: Setup, facts: Facts, say: Say) -> dict[str, Any]:
    """The case's rounds, the model's facts and the engines. Raises Skipped, WorkerError."""
    repack = room(case, setup, facts)
    run = _starts if case.kind == "start" else _steady
    return {"facts": _facts(case, facts)} | run(case, setup, facts, repack, say)


def room(case: Case, setup: Setup, facts: Facts) -> bool:
    """Whether the peer may keep its second copy of the weights. Raises Skipped if even without it there is no room."""
    free = psutil.virtual_memory().available
    peer = bool(interpreter(case, setup))
    for repack in (True, False):
        need = facts.need(case.context, peer=peer, repack=repack)
        if need <= free:
            return repack
    raise Skipped(f"{need / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB available")


def interpreter(case: Case, setup: Setup) -> str:
    """The peer's; empty if the case has no peer, or this machine has not."""
    return {"llama.cpp": setup.llama, "llama.cpp-avx2": setup.llama_avx2, "transformers": setup.transformers, "": ""}[
        case.peer
    ]


def _facts(case: Case, facts: Facts) -> dict[str, Any]:
    """What shares are computed from."""
    named = {key: value for key, value in asdict(facts).items() if key in ("file_bytes", "token_bytes", "repacked")}
    if case.kind in SIZES:
        named["decode_bytes"] = facts.decode_bytes(case.depth, GENERATE)
        named["prompt_macs"] = facts.macs_per_prompt_token(case.prompt)
    return named | {"kv_bytes_at_start": facts.kv_bytes(START_CONTEXT - 1)}


# ---- processes that stay -----------------------------------------------------------------------------------------


def _steady(case: Case, setup: Setup, facts: Facts, repack: bool, say: Say) -> dict[str, Any]:
    with ExitStack() as stack:
        bench, engines, notes = _open(stack, case, setup, facts, repack)
        _warm_up(bench)
        work = {"rows": _rows, "overhead": _overhead}.get(case.kind, _speed)
        rounds = []
        for number in range(case.rounds):
            measured = collected(work(bench))
            rounds.append(measured)
            say(f"  round {number + 1} of {case.rounds}: {summary(measured)}")
    return {"engines": engines, "notes": notes, "rounds": rounds}


def collected(figures: Iterable[Figure]) -> Round:
    """One round: the mean of what was measured several times in it."""
    lists: dict[str, dict[str, list[float]]] = {}
    for side, name, value in figures:
        lists.setdefault(side, {}).setdefault(name, []).append(value)
    return {side: {name: statistics.mean(values) for name, values in of.items()} for side, of in lists.items()}


def summary(measured: Round) -> str:
    """One line of a round's figures."""
    return "; ".join(
        f"{side} " + " ".join(f"{k} {v:.4g}" for k, v in of.items()) for side, of in measured.items() if of
    )


def _open(
    stack: ExitStack, case: Case, setup: Setup, facts: Facts, repack: bool
) -> tuple[Bench, dict[str, Any], list[str]]:
    """The processes with their models open, what they say they are, and what must be known of them."""
    model = str(case.file.path(setup.models))
    environment = our_environment(case.isa)
    given: dict[str, Any] = {"context": case.context, "threads": case.threads}
    ours = stack.enter_context(Worker("ours.py", sys.executable, environment))
    ours.ask("open", model=model, **given)
    if case.kind == "overhead":
        ours.ask("open_text", model=model, **given)
    engines, notes = {"ours": ours.ask("describe")}, []
    peer = _peer(stack, case, setup)
    if peer:
        engines["peer"] = peer.ask("describe")
        _check_peer(case, engines["peer"])
        if case.peer == "transformers":
            peer.ask("open", model=str(setup.transformers_model), **given)
        else:
            peer.ask("open", model=model, repack=repack, **given)
        if not repack and case.peer.startswith("llama.cpp"):
            notes.append("llama.cpp without its repacking: its second copy of the weights does not fit")
    machine = stack.enter_context(Worker("machine.py", sys.executable, environment))
    machine.ask("open", size=_buffer_size(facts), threads=case.threads)
    return Bench(case, ours, peer, machine), engines, notes


def _peer(stack: ExitStack, case: Case, setup: Setup) -> Worker | None:
    python = interpreter(case, setup)
    if not python and case.peer != "transformers":
        return None
    if case.peer == "transformers" and not (python and setup.transformers_model):
        raise Skipped("--transformers-python and --transformers-model are needed")
    script = "transformers_peer.py" if case.peer == "transformers" else "llama.py"
    return stack.enter_context(Worker(script, python))


def _check_peer(case: Case, engine: dict[str, Any]) -> None:
    """A llama.cpp that is to have no AVX-512 has none."""
    if case.peer == "llama.cpp-avx2" and "AVX512 = 1" in engine["system"]:
        raise Skipped("the interpreter of --avx2-python has a llama.cpp built with AVX-512")


def _buffer_size(facts: Facts) -> int:
    """As large as the file, but at most a quarter of what is free once it is resident: its pages must stay."""
    left: int = psutil.virtual_memory().available - facts.file_bytes
    return min(facts.file_bytes, max(left // 4, 2**28))


def _warm_up(bench: Bench) -> None:
    """Touch every page of the weights, and let caches and clocks settle. Untimed."""
    for worker in bench.sides.values():
        worker.ask("clear")
        worker.ask("prompt", tokens=WARM_PROMPT)
        worker.ask("generate", tokens=WARM_TOKENS)
        if bench.case.kind == "rows":
            worker.ask("steps", rows=ROWS, repeats=1)
    if bench.case.kind == "overhead":
        bench.ours.ask("answer", tokens=WARM_TOKENS)


def _speed(bench: Bench) -> Iterator[Figure]:
    """Tokens per second of a prompt, and of generating: from an empty cache, or on top of the prompt."""
    prompt, depth = bench.case.prompt, bench.case.depth
    yield from _limits(bench)
    for side, worker in bench.sides.items():
        worker.ask("clear")
        yield side, f"pp{prompt}", prompt / worker.ask("prompt", tokens=prompt)
        if not depth:
            worker.ask("clear")
    yield from _limits(bench)
    seconds = dict.fromkeys(bench.sides, 0.0)
    for _ in range(0, GENERATE, TURN):
        for side, worker in bench.sides.items():
            seconds[side] += worker.ask("generate", tokens=TURN)
    yield from _limits(bench)
    name = f"tg{GENERATE}@{depth}" if depth else f"tg{GENERATE}"
    for side, taken in seconds.items():
        yield side, name, GENERATE / taken


def _rows(bench: Bench) -> Iterator[Figure]:
    """Seconds of one step of each number of rows."""
    yield from _limits(bench)
    for side, worker in bench.sides.items():
        worker.ask("clear")
        worker.ask("prompt", tokens=32)
        for rows, seconds in worker.ask("steps", rows=ROWS, repeats=STEP_REPEATS).items():
            yield side, f"rows{rows}", seconds
    yield from _limits(bench)


def _overhead(bench: Bench) -> Iterator[Figure]:
    """Seconds per token of bare steps, and of an answer."""
    yield from _limits(bench)
    bench.ours.ask("clear")
    bench.ours.ask("prompt", tokens=16)
    yield "ours", "step", bench.ours.ask("generate", tokens=GENERATE) / GENERATE
    yield "ours", "answer", bench.ours.ask("answer", tokens=GENERATE)


def _limits(bench: Bench) -> Iterator[Figure]:
    for name, value in bench.machine.ask("measure", seconds=LIMIT_SECONDS).items():
        yield "limits", name, value


# ---- processes that start ----------------------------------------------------------------------------------------


def _starts(case: Case, setup: Setup, facts: Facts, repack: bool, say: Say) -> dict[str, Any]:
    """Warm starts by turns; one of ours with no kernel compiled yet; each engine once untimed before."""
    model = case.file.path(setup.models)
    commands = {
        "ours": [sys.executable, "-m", "edge_gemma", "run", str(model), "-p", PROMPT, "-n", "64", "--temp", "0"]
    }
    commands["ours"] += ["--threads", str(case.threads), "--context", str(START_CONTEXT)]
    python = interpreter(case, setup)
    if python:
        numbers = [str(START_CONTEXT), str(case.threads)]
        commands["peer"] = [python, str(WORKERS / "llama_first_token.py"), str(model), PROMPT, *numbers]
    environments = {"ours": our_environment(case.isa), "peer": None}
    rounds: list[Round] = []
    for number in range(-1, case.rounds):
        measured: Round = {}
        for side, command in commands.items():
            measured[side] = _start(first_token(command, model, environments[side]))
        if number >= 0:
            rounds.append(measured)
            say(f"  round {number + 1} of {case.rounds}: {summary(measured)}")
    with tempfile.TemporaryDirectory() as folder:
        cold = first_token(commands["ours"], model, our_environment(case.isa, folder))
    rounds[0]["ours"]["cold"] = cold["seconds"]
    say(f"  cold: {cold['seconds']:.1f} s")
    return {"engines": {}, "notes": [], "rounds": rounds}


def _start(seen: dict[str, float]) -> Measures:
    """As results name it."""
    measured = {"first_token": seen["seconds"], "own_first_token": seen["seconds"] - seen.get("import", 0.0)}
    return measured | {key: seen[key] for key in ("peak", "file", "anonymous") if key in seen}
