"""This project and its peers on the same files, in one run, by turns.

    python bench/side_by_side.py --models FOLDER --peer-python PYTHON -o RESULT.jsonl            # everything
    python bench/side_by_side.py --models FOLDER --peer-python PYTHON -o RESULT.jsonl --quick    # under 3 minutes

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
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import rounds
from bench.cases import Case, matrix, only, quick
from bench.models import Facts
from bench.processes import ROOT, WorkerError
from bench.results import FORMAT, Line, Result, measurement, seconds_a_round
from bench.rounds import Setup, Skipped
from edge_gemma.cores import default_threads
from edge_gemma.kernels import caches
from edge_gemma.kernels.isa import current, target
from edge_gemma.measure.speed import cpu_info


def say(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} {text}", file=sys.stderr, flush=True)


# ---- a run ---------------------------------------------------------------------------------------------------------


def run(cases: list[Case], setup: Setup, result: Result, output: Path) -> int:
    """Measure what the result lacks, saving it after each case; how many failed that have what they need."""
    done, failed = result.cases(), 0
    for number, case in enumerate(cases, 1):
        if case.name in done:
            continue
        say(f"{number} of {len(cases)}, {case.name}")
        result.forget(case.name)
        try:
            result.lines += measured(case, setup)
        except (Skipped, WorkerError) as error:
            failed += isinstance(error, WorkerError)
            reason = f"failed: {error}" if isinstance(error, WorkerError) else str(error)
            say(f"{case.name}: skipped: {reason}")
            result.lines.append({"case": case.name, "skipped": reason})
        result.save(output)
    return failed


def measured(case: Case, setup: Setup) -> list[Line]:
    """The lines of a case. Raises Skipped, WorkerError."""
    path = case.file.path(setup.models)
    if not path.exists():
        raise Skipped(f"no {path.name} in the folder of models; {case.file.how}")
    start = time.monotonic()
    lines = rounds.measure(case, setup, Facts.of(path), say)
    return [*lines, measurement(case, "run", "seconds", 0, round(time.monotonic() - start, 1))]


def header(setup: Setup) -> Line:
    """The first line of a run: what is measured, where. Raises WorkerError for a peer that is not there."""
    processor = Path("/proc/cpuinfo")
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_info(),
            "target": target()[0],
            "caches": asdict(caches.sizes()),
            "isa": current().name,
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": f"{platform.system()} {platform.machine()}",
            "virtual": processor.exists() and " hypervisor" in processor.read_text("utf-8", "replace"),
        },
        "software": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numba", "llvmlite", "numpy")},
        },
        "peers": list(dict.fromkeys(rounds.described(peer, setup) for peer in setup.pythons)),
    }


def commit() -> str:
    """What is measured, as git names it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def opened(path: Path, head: Line, resume: bool) -> Result:
    """A new result, or the one at `path` to go on with. Raises ValueError where that would mix or lose figures."""
    if not path.exists():
        return Result([head])
    if not resume:
        raise ValueError(f"{path} exists; --resume continues it")
    old = Result.load(path)
    if old.runs[0]["machine"] != head["machine"]:
        raise ValueError(f"{path} is of another machine: {old.runs[0]['machine']}")
    return Result([*old.lines, head])


# ---- the command ---------------------------------------------------------------------------------------------------


def show(cases: list[Case], models: Path) -> None:
    """Names, and how long each took for bench/results."""
    known = seconds_a_round()
    for case in cases:
        seconds = f"{case.rounds * known[case.name]:5.0f} s" if case.name in known else "never measured"
        path = case.file.path(models)
        print(f"{case.name:36} {case.rounds} rounds  {seconds}{'' if path.exists() else f'  no {path.name}'}")
    print(f"about {sum(case.rounds * known.get(case.name, 0) for case in cases) / 60:.0f} minutes")


def make(cases: list[Case], models: Path) -> None:
    """The model files of `cases` that are not there."""
    for model in dict.fromkeys(case.file for case in cases):
        if not model.path(models).exists():
            say(f"making {model.path(models)}")
            model.make(models)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare with llama.cpp and transformers on the same files.")
    add = parser.add_argument
    add("--models", type=Path, required=True, metavar="FOLDER", help="of the model files, 2b-Q4_0.gguf and so on")
    add("--make", action="store_true", help="make the missing model files first (all: 150 GB)")
    add("-o", dest="output", type=Path, help="the result, lines of JSON")
    add("--resume", action="store_true", help="continue the result: measure only what it lacks")
    add("--quick", action="store_true", help="a few cases, under 3 minutes")
    add("--only", action="append", default=[], metavar="PATTERN", help="cases whose name contains or matches it")
    add("--rounds", type=int, metavar="N", help="rounds of every case; default: as --list shows")
    add("--list", action="store_true", help="show the cases and do nothing")
    add("-t", dest="threads", type=int, default=default_threads(), help="default: fast physical cores")
    add("--peer-python", metavar="PYTHON", help="an interpreter with llama-cpp-python built for this CPU")
    add("--avx2-python", metavar="PYTHON", help="one with llama-cpp-python built with AVX2, no AVX-512")
    add("--transformers-python", metavar="PYTHON", help="one with transformers and torch")
    add("--transformers-model", type=Path, metavar="FOLDER", help="Gemma 3 270M as a Hugging Face folder")
    return parser


def main() -> int:
    """1 if a case failed that had what it needs."""
    parser = arguments()
    args = parser.parse_args()
    cases = only((quick if args.quick else matrix)(args.threads), args.only, args.rounds)
    if not cases:
        parser.error("no case has such a name; --list shows them all")
    if args.make:
        make(cases, args.models)
    if args.list:
        show(cases, args.models)
        return 0
    if not args.output:
        parser.error("-o is needed")
    if not args.output.parent.is_dir():
        parser.error(f"-o: there is no folder {args.output.parent}")
    transformers = args.transformers_python if args.transformers_model else None
    peers = {"llama.cpp": args.peer_python, "llama.cpp-avx2": args.avx2_python, "transformers": transformers}
    setup = Setup(args.models, {peer: python for peer, python in peers.items() if python}, args.transformers_model)
    try:
        result = opened(args.output, header(setup), args.resume)
    except (OSError, ValueError, WorkerError) as error:
        parser.error(str(error))
    failed = run(cases, setup, result, args.output)
    say("`python bench/report.py` makes the tables of what is in bench/results")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
