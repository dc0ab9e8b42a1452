"""This project and its peers on the same files, in one run, by turns.

    python bench/side_by_side.py --models FOLDER --peer-python PYTHON -o RESULT.json            # everything
    python bench/side_by_side.py --models FOLDER --peer-python PYTHON -o RESULT.json --quick    # under 3 minutes

PYTHON is an interpreter that has llama-cpp-python, built from source for this machine. Each engine is a process that
opens the model once and warms up; every round then measures the machine's limits, ours and the peer, one after the
other, so that a machine whose speed drifts does not distort their ratio. The result is written after every case; what
was interrupted goes on with --resume. `--list` shows the cases, and how long each takes about.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import record, rounds
from bench.cases import Case, estimate, matrix, only, quick
from bench.models import Facts
from bench.processes import WorkerError
from bench.rounds import Setup, Skipped
from edge_gemma.cores import default_threads
from edge_gemma.kernels import caches
from edge_gemma.kernels.isa import target
from edge_gemma.measure.speed import cpu_info


def say(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} {text}", file=sys.stderr, flush=True)


@dataclass
class Run:
    """Cases being measured into one file."""

    setup: Setup
    output: Path
    result: record.Record
    deadline: float
    failed: int = 0

    def all(self, cases: list[Case]) -> None:
        """Measure what the result lacks. What cannot be is skipped; `failed` counts what should have been possible."""
        for number, case in enumerate(cases, 1):
            if case.name in self.result["cases"]:
                continue
            reason = self._one(case, f"{number} of {len(cases)}, {case.name}")
            self.result["skipped"].pop(case.name, None)
            if reason:
                say(f"{case.name}: skipped: {reason}")
                self.result["skipped"][case.name] = reason
            record.save(self.result, self.output)

    def _one(self, case: Case, title: str) -> str:
        """Measure and keep; or why not."""
        path = case.file.path(self.setup.models)
        if not path.exists():
            return f"no {path.name} in the folder of models; {case.file.how}"
        facts = Facts.of(path)
        seconds = estimate(case, facts)
        if time.monotonic() + seconds > self.deadline:
            return f"it takes about {seconds:.0f} s, more than is left of --budget-minutes"
        say(f"{title}: about {seconds:.0f} s")
        start = time.monotonic()
        try:
            measured = rounds.measure(case, self.setup, facts, say)
        except Skipped as error:
            return str(error)
        except WorkerError as error:
            self.failed += 1
            return f"failed: {error}"
        self.result["cases"][case.name] = {
            **asdict(case),
            "title": case.file.title,
            "commit": commit(),
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.monotonic() - start, 1),
            **measured,
        }
        return ""


def cpu_and_cache() -> str:
    """The CPU as its maker and as LLVM name it: what is fastest depends on the first-level cache."""
    return f"{cpu_info()} ({target()[0]}, {caches.sizes().l1 >> 10} KB of first-level cache)"


def new_result() -> record.Record:
    """A result without cases."""
    return {
        "format": record.FORMAT,
        "machine": {
            "cpu": cpu_and_cache(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": f"{platform.system()} {platform.machine()}",
            "virtual": is_virtual(),
        },
        "software": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numba", "llvmlite", "numpy")},
        },
        "cases": {},
        "skipped": {},
    }


def is_virtual() -> bool:
    """Whether the processor says that others share it, where the system tells."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and " hypervisor" in flags.read_text("utf-8", "replace")


def commit() -> str:
    """What was measured, as git names it; empty outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def open_result(path: Path, resume: bool) -> record.Record:
    """A new result, or the one at `path` to go on with. Raises SystemExit where that would mix or lose figures."""
    fresh = new_result()
    if not path.exists():
        return fresh
    if not resume:
        raise SystemExit(f"{path} exists; --resume continues it")
    old = record.load(path)
    if old["machine"] != fresh["machine"]:
        raise SystemExit(f"{path} is of another machine: {old['machine']}")
    return old


def show(cases: list[Case], models: Path) -> None:
    """Names and estimates."""
    total = 0.0
    for case in cases:
        path = case.file.path(models)
        seconds = estimate(case, Facts.of(path)) if path.exists() else 0.0
        total += seconds
        print(f"{case.name:36} {case.rounds} rounds  " + (f"{seconds:5.0f} s" if seconds else f"no {path.name}"))
    print(f"about {total / 60:.0f} minutes")


def make(cases: list[Case], models: Path) -> None:
    """The model files of `cases` that are not there."""
    for model in dict.fromkeys(case.file for case in cases):
        if not model.path(models).exists():
            say(f"making {model.path(models)}")
            model.make(models)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare with llama.cpp and transformers on the same files.")
    add = parser.add_argument
    add(
        "--models", type=Path, required=True, metavar="FOLDER", help="where the model files are, 2b-Q4_0.gguf and so on"
    )
    add("--make", action="store_true", help="make the missing model files first (all: 90 GB)")
    add("-o", dest="output", type=Path, help="the result, as JSON")
    add("--resume", action="store_true", help="continue the result: measure only what it lacks")
    add("--quick", action="store_true", help="a few cases, under 3 minutes")
    add("--only", action="append", default=[], metavar="PATTERN", help="cases whose name contains or matches it")
    add("--rounds", type=int, metavar="N", help="rounds of every case; default: as --list shows")
    add("--budget-minutes", type=float, default=float("inf"), metavar="N", help="begin no case that would end later")
    add("--list", action="store_true", help="show the cases and do nothing")
    add("-t", dest="threads", type=int, default=default_threads(), help="default: fast physical cores")
    add("--peer-python", default="", metavar="PYTHON", help="an interpreter with llama-cpp-python built for this CPU")
    add("--avx2-python", default="", metavar="PYTHON", help="one with llama-cpp-python built with AVX2, no AVX-512")
    add("--transformers-python", default="", metavar="PYTHON", help="one with transformers and torch")
    add("--transformers-model", type=Path, metavar="FOLDER", help="Gemma 3 270M as a Hugging Face folder")
    args = parser.parse_args()
    if not args.list and not args.output:
        parser.error("-o is needed")
    return args


def chosen(args: argparse.Namespace) -> list[Case]:
    select: Callable[[int], list[Case]] = quick if args.quick else matrix
    cases = only(select(args.threads), args.only)
    return [replace(case, rounds=args.rounds) for case in cases] if args.rounds else cases


def main() -> int:
    """1 if a case failed that had what it needs."""
    args = arguments()
    cases = chosen(args)
    if args.make:
        make(cases, args.models)
    if args.list:
        show(cases, args.models)
        return 0
    setup = Setup(args.models, args.peer_python, args.avx2_python, args.transformers_python, args.transformers_model)
    start = time.monotonic()
    run = Run(setup, args.output, open_result(args.output, args.resume), start + 60 * args.budget_minutes)
    run.all(cases)
    say(f"{time.monotonic() - start:.0f} s; `python bench/report.py` makes the tables of what is in bench/results")
    return int(run.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
