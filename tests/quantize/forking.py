"""Conversions in forked children that are killed, interrupted, or meet a disk that fails at a given system call.

A program of its own, so that Numba is imported once for hundreds of children:

    python -m tests.quantize.forking FOLDER WORK CASES [OPTION ...]

FOLDER is a checkpoint, WORK an empty folder, CASES a JSON list of `Case` fields, OPTIONs are of `quantize`. Prints
a JSON list of `Outcome`s.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

CALLS = ("open", "write", "lseek", "fsync", "close", "replace", "unlink")
OLD = b"what was there before"
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO, "quota": errno.EDQUOT}


@dataclass(frozen=True)
class Case:
    """What happens to one conversion."""

    what: str
    """kill, interrupt, terminate: a signal; full, broken, quota: an error of the call; short: half is written;
    limit: files end at byte `at`; random: SIGKILL at fraction `at` of the usual time; none."""
    at: float = 0
    """Number of the system call, from 0."""
    after: bool = False
    """The signal comes after the call instead of before it."""


@dataclass(frozen=True)
class Outcome:
    """What it left. `status` is negative for a signal; `rerun` tells what is wrong after the next run, else empty."""

    status: int
    destination: str  # old, new or broken
    leftovers: int
    errors: str
    rerun: str


def main(folder: str, work: str, cases: str, *options: str) -> None:
    """Run every case and print the outcomes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this runs in the background
    runner = Runner(folder, Path(work), options)
    outcomes = [asdict(runner.run(Case(**case))) for case in json.loads(cases)]
    print(json.dumps({"calls": runner.calls, "outcomes": outcomes}))


class Runner:
    """Runs cases; knows what a conversion that nothing happens to writes, how long it takes and its system calls."""

    def __init__(self, folder: str, work: Path, options: tuple[str, ...]) -> None:
        self.folder, self.out, self.options = folder, work / "out.gguf", options
        assert self.convert() == 0
        started = time.perf_counter()
        assert self.convert() == 0
        self.seconds = time.perf_counter() - started
        self.new = self.out.read_bytes()
        self.calls = self._count_calls()

    def convert(self) -> int:
        """As the command line does it."""
        from edge_gemma.commands import quantize as cli

        return cli.main([self.folder, str(self.out), "--force", "--quiet", *self.options])

    def run(self, case: Case) -> Outcome:
        """The conversion with an old file there; then again with nothing happening."""
        self.out.write_bytes(OLD)
        status, errors = self._fork(case)
        leftovers = self._leftovers()
        before = self.out.read_bytes() if self.out.exists() else b""
        destination = {OLD: "old", self.new: "new"}.get(before, "broken")
        rerun = "" if self.convert() == 0 and self.out.read_bytes() == self.new else "not the same bytes"
        if self._leftovers():
            rerun += " leftovers"
        return Outcome(status, destination, leftovers, errors, rerun)

    def _leftovers(self) -> int:
        return sum(entry != self.out for entry in self.out.parent.iterdir())

    def _fork(self, case: Case) -> tuple[int, str]:
        """Status and what was printed to stderr."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(case, writer)
        os.close(writer)
        if case.what == "random":
            time.sleep(case.at * self.seconds)
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            errors = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), errors

    def _child(self, case: Case, writer: int) -> NoReturn:
        status = 99
        try:
            sys.stderr = os.fdopen(writer, "w", encoding="utf-8")
            _arm(case)
            status = self.convert()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _count_calls(self) -> list[str]:
        names: list[str] = []
        originals = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, _counting(originals[name], name, names))
        assert self.convert() == 0
        for name, original in originals.items():
            setattr(os, name, original)
        return names


def _counting(original: Callable[..., Any], name: str, names: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        names.append(name)
        return original(*arguments, **options)

    return call


def _arm(case: Case) -> None:
    """Let the case happen in this process."""
    if case.what == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(case.at), int(case.at)))
    elif case.what not in ("random", "none"):
        names: list[str] = []
        for name in CALLS:
            setattr(os, name, _failing(getattr(os, name), name, names, case))


def _failing(original: Callable[..., Any], name: str, names: list[str], case: Case) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        names.append(name)
        if len(names) - 1 != case.at:
            return original(*arguments, **options)
        if case.what in ERRORS:
            raise OSError(ERRORS[case.what], os.strerror(ERRORS[case.what]))
        if case.what == "short" and name == "write":
            return original(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
        if case.what in SIGNALS and not case.after:
            os.kill(os.getpid(), SIGNALS[case.what])
        try:
            return original(*arguments, **options)
        finally:
            if case.what in SIGNALS and case.after:
                os.kill(os.getpid(), SIGNALS[case.what])

    return call


def random_kills(count: int, seed: int) -> list[Case]:
    """SIGKILL at random times, up to a little after the usual end."""
    generator = random.Random(seed)
    return [Case("random", generator.uniform(0.0, 1.2)) for _ in range(count)]


if __name__ == "__main__":
    main(*sys.argv[1:])
