"""Decoding while other programs keep cores busy, with one thread and with all, beside llama.cpp.

    python bench/busy.py MODEL.gguf --peer-python PYTHON

A busy program is an endless loop. Each engine decodes for some seconds beside 0, 1, ... of them, by turns and over
several rounds, and the medians are printed as a table. Nothing else should be running.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.processes import Worker, our_environment
from edge_gemma.cores import default_threads

CONTEXT, TURN = 4096, 4
Engine = tuple[str, int]
"""Name and threads."""


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def speed(worker: Worker, seconds: float) -> float:
    """Tokens per second, decoding for `seconds` from an empty cache."""
    worker.ask("clear")
    tokens, spent = 0, 0.0
    while spent < seconds and tokens < CONTEXT - 2 * TURN:
        spent += worker.ask("generate", tokens=TURN)
        tokens += TURN
    return tokens / spent


def engines(stack: ExitStack, model: str, threads: int, peer_python: str) -> dict[Engine, Worker]:
    """Ours and the peer, with all threads and with one, the model opened."""
    opened = {}
    for name, script, python in (("edge-gemma", "ours.py", sys.executable), ("llama.cpp", "llama.py", peer_python)):
        for count in dict.fromkeys((threads, 1)) if python else ():
            worker = stack.enter_context(Worker(script, python, our_environment() if script == "ours.py" else None))
            worker.ask("open", model=model, context=CONTEXT, threads=count)
            worker.ask("generate", tokens=TURN)
            opened[name, count] = worker
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode while other programs keep cores busy.")
    add = parser.add_argument
    add("model", metavar="MODEL.gguf")
    add("-t", dest="threads", type=int, default=default_threads(), help="default: fast physical cores")
    add("--programs", type=int, nargs="+", metavar="N", help="default: 0, 1, and as many as threads")
    add("--seconds", type=float, default=6.0, help="of decoding, each time (default: 6)")
    add("--rounds", type=int, default=3, help="(default: 3)")
    add("--peer-python", default="", metavar="PYTHON", help="an interpreter with llama-cpp-python built for this CPU")
    args = parser.parse_args()
    programs = args.programs or list(dict.fromkeys((0, 1, args.threads)))
    with ExitStack() as stack:
        workers = engines(stack, args.model, args.threads, args.peer_python)
        speeds: dict[tuple[Engine, int], list[float]] = {}
        for _ in range(args.rounds):
            for count in programs:
                for engine, worker in workers.items():
                    with busy_programs(count):
                        speeds.setdefault((engine, count), []).append(speed(worker, args.seconds))
    print("| busy programs | " + " | ".join(f"{name}, {n} thread{'s' * (n > 1)}" for name, n in workers) + " |")
    print("|---:|" + "---:|" * len(workers))
    for count in programs:
        row = (f"{statistics.median(speeds[engine, count]):.1f}" for engine in workers)
        print(f"| {count} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
