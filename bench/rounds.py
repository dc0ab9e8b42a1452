"""One case measured: the processes it needs, a warm-up, and its rounds. Knows no files of results and no targets."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import cases
from bench.cases import GENERATE, Case
from bench.models import Facts
from bench.processes import WORKERS, Worker, WorkerError, first_token, our_environment
from bench.results import Line, measurement
from edge_gemma.cores import default_threads

PROMPT = "The quick brown fox jumps over the lazy dog, and then it"
WARM_PROMPT, WARM_TOKENS = 64, 4
LIMIT_SECONDS = 0.3
"""For each limit, several times in each round."""
TURN = 16
"""Tokens that an engine generates before it is the other's turn."""

Say = Callable[[str], None]
Figure = tuple[str, str, float]
"""Side ("ours", "peer", or "limits"), measure, value."""


class Skipped(Exception):  # noqa: N818  (an answer, not a fault)
    """The case cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Setup:
    """Where things are. `pythons`: peer -> its interpreter; a peer that has none is not there, ours is alone."""

    models: Path
    pythons: dict[str, str]
    transformers_model: Path | None = None


@dataclass
class Bench:
    """The processes of a case. No peer: there is none."""

    case: Case
    setup: Setup
    sides: dict[str, Worker]
    machine: Worker


def measure(case: Case, setup: Setup, facts: Facts, say: Say) -> list[Line]:
    """The case's rounds, the facts that shares are computed from, and a note. Raises Skipped, WorkerError."""
    if case.peer == "transformers" and case.peer not in setup.pythons:
        raise Skipped("--transformers-python and --transformers-model are needed")
    repack = room(case, setup, facts)
    lines = [measurement(case, "model", name, 0, value) for name, value in _facts(case, facts)]
    for number, figures in enumerate(_rounds(case, setup, facts, repack)):
        lines += [measurement(case, side, name, number, value) for side, name, value in figures]
        told = " ".join(f"{side} {name} {value:.4g};" for side, name, value in figures if "/" not in name)
        say(f"  round {number + 1} of {case.rounds}: {told}")
    if not repack:
        note = "llama.cpp without its repacking: its second copy of the weights does not fit"
        lines.append({"case": case.name, "note": note})
    return lines


def room(case: Case, setup: Setup, facts: Facts) -> bool:
    """Whether the peer may keep its second copy of the weights. Raises Skipped if even without it there is no room."""
    free: int = psutil.virtual_memory().available
    peer = case.peer in setup.pythons
    need = facts.need(case.context, peer=peer)
    if need > free:
        raise Skipped(f"{need / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB available")
    return not peer or case.peer == "transformers" or need + facts.repacked <= free


def _facts(case: Case, facts: Facts) -> Iterator[tuple[str, float]]:
    if case.kind in ("short", "long"):
        yield "decode_bytes", facts.decode_bytes(case.depth, GENERATE)
        yield "prompt_macs", facts.prompt_macs(case.prompt)
    if case.kind == "start":
        yield "kv_bytes_at_start", facts.cache_bytes(cases.START_CONTEXT)
        yield "token_bytes", facts.token_bytes


def _rounds(case: Case, setup: Setup, facts: Facts, repack: bool) -> Iterator[list[Figure]]:
    """The figures of each round, which are limits too where processes stay."""
    if case.kind == "start":
        yield from _starts(case, setup)
        return
    kinds = {"rows": _rows, "overhead": _overhead, "busy": _busy, "profile": _profile, "profile-long": _profile}
    with ExitStack() as stack:
        bench = _open(stack, case, setup, facts, repack)
        _warm_up(bench)
        for _ in range(case.rounds):
            yield [*_limits(bench), *kinds.get(case.kind, _speed)(bench), *_limits(bench)]


# ---- processes that stay -------------------------------------------------------------------------------------------


def _open(stack: ExitStack, case: Case, setup: Setup, facts: Facts, repack: bool) -> Bench:
    """The processes with their models open."""
    sides, environment = {}, our_environment(case.isa)
    given = {"model": str(case.file.path(setup.models)), "context": case.context, "threads": case.threads}
    if not case.kind.startswith("profile"):
        sides["ours"] = stack.enter_context(Worker("ours.py", sys.executable, environment))
        sides["ours"].ask("open", **given)
    if case.kind == "overhead":
        sides["ours"].ask("open_text", **given)
    if case.peer in setup.pythons:
        sides["peer"] = stack.enter_context(peer_worker(case.peer, setup))
        options = {"model": str(setup.transformers_model)} if case.peer == "transformers" else {"repack": repack}
        sides["peer"].ask("open", **given | options)
    machine = stack.enter_context(Worker("machine.py", sys.executable, environment))
    machine.ask("open", size=_buffer_size(facts), threads=case.threads)
    return Bench(case, setup, sides, machine)


def peer_worker(peer: str, setup: Setup) -> Worker:
    """Its process, with no model yet. Raises WorkerError."""
    return Worker("transformers_peer.py" if peer == "transformers" else "llama.py", setup.pythons[peer])


def described(peer: str, setup: Setup) -> str:
    """What the peer says it is. Raises WorkerError, also for one that is to have no AVX-512 and has it."""
    with peer_worker(peer, setup) as worker:
        if peer == "llama.cpp-avx2" and worker.ask("has_avx512"):
            raise WorkerError("the interpreter of --avx2-python has a llama.cpp built with AVX-512")
        return str(worker.ask("describe"))


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
            worker.ask("steps", rows=cases.ROWS, repeats=1)
    if bench.case.kind == "overhead":
        bench.sides["ours"].ask("answer", tokens=WARM_TOKENS)


def _limits(bench: Bench) -> Iterator[Figure]:
    for name, value in bench.machine.ask("measure", seconds=LIMIT_SECONDS).items():
        yield "limits", name, value


def _speed(bench: Bench) -> Iterator[Figure]:
    """Tokens per second of a prompt, and of generating: from an empty cache, or on top of the prompt."""
    prompt, depth = bench.case.prompt, bench.case.depth
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
    for side, taken in seconds.items():
        yield side, f"tg{GENERATE}@{depth}" if depth else f"tg{GENERATE}", GENERATE / taken


def _rows(bench: Bench) -> Iterator[Figure]:
    """Seconds of one step of each number of rows."""
    for side, worker in bench.sides.items():
        worker.ask("clear")
        worker.ask("prompt", tokens=32)
        for rows, seconds in worker.ask("steps", rows=cases.ROWS, repeats=cases.STEP_REPEATS).items():
            yield side, f"rows{rows}", seconds


def _overhead(bench: Bench) -> Iterator[Figure]:
    """Seconds per token of bare steps, and of an answer."""
    ours = bench.sides["ours"]
    ours.ask("clear")
    ours.ask("prompt", tokens=16)
    yield "ours", "step", ours.ask("generate", tokens=GENERATE) / GENERATE
    yield "ours", "answer", ours.ask("answer", tokens=GENERATE)


def _busy(bench: Bench) -> Iterator[Figure]:
    """Tokens per second from an empty cache, beside no, one, and as many programs as there are cores."""
    for count in dict.fromkeys((0, 1, default_threads())):
        for side, worker in bench.sides.items():
            with busy_programs(count):
                worker.ask("clear")
                tokens, spent = 0, 0.0
                while spent < cases.BUSY_SECONDS and tokens < cases.LONG - TURN:
                    spent += worker.ask("generate", tokens=TURN // 4)
                    tokens += TURN // 4
            yield side, f"busy{count}", tokens / spent


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _profile(bench: Bench) -> Iterator[Figure]:
    """`edge-gemma bench --profile`, operation by operation."""
    case, model = bench.case, bench.case.file.path(bench.setup.models)
    sizes = {
        "-p": cases.SHORT // 2,
        "-n": GENERATE // 2,
        "-d": case.depth,
        "-t": case.threads,
        "-r": cases.PROFILE_REPEATS,
    }
    command = [sys.executable, "-m", "edge_gemma", "bench", str(model), "--profile", "--json"]
    command += [str(part) for option in sizes.items() for part in option]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=our_environment(case.isa))
    if done.returncode:
        raise WorkerError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    profile = json.loads(done.stdout)
    for step in ("decode", "prefill"):
        for name in ("whole_us", "rows"):
            yield "ours", f"{step}/program/{name}", profile[step][name]
        for part in profile[step]["parts"]:
            operation = part["label"] + (f" ({', '.join(part['formats'])})" if part["formats"] else "")
            yield "ours", f"{step}/{operation}/us", part["us"]
            yield "ours", f"{step}/{operation}/bytes", part["weight_bytes"] + part["kv_bytes"]
            yield "ours", f"{step}/{operation}/macs", part["macs"]
    for name in ("program", "threads", "sampling", "detokenizing", "python"):
        yield "ours", f"outside/{name}/each_us", profile["outside"][f"{name}_us"]


# ---- processes that start ------------------------------------------------------------------------------------------


def _starts(case: Case, setup: Setup) -> Iterator[list[Figure]]:
    """Warm starts by turns; one of ours with no kernel compiled yet; each engine once untimed before."""
    model = case.file.path(setup.models)
    context, threads = str(cases.START_CONTEXT), str(case.threads)
    run = [sys.executable, "-m", "edge_gemma", "run", str(model), "-p", PROMPT, "-n", "64", "--temp", "0"]
    commands = {"ours": [*run, "--threads", threads, "--context", context]}
    if case.peer in setup.pythons:
        script = str(WORKERS / "llama_first_token.py")
        commands["peer"] = [setup.pythons[case.peer], script, str(model), PROMPT, context, threads]
    environments = {"ours": our_environment(), "peer": None}
    for number in range(-1, case.rounds):
        seen = {side: first_token(command, model, environments[side]) for side, command in commands.items()}
        figures = [(side, name, value) for side, of in seen.items() for name, value in of.items()]
        if number == 0:
            with tempfile.TemporaryDirectory() as folder:
                cold = first_token(commands["ours"], model, our_environment(cache=folder))
            figures.append(("ours", "cold", cold["first_token"]))
        if number >= 0:
            yield figures
