"""Worker processes, asked by lines of JSON, and processes timed to their first token. Knows no cases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "bench/workers"
PAUSE = 0.05
"""Seconds before each question: what another engine's threads may spin after their work."""


class WorkerError(Exception):
    """A worker could not do what it was asked, or ended."""


class Worker:
    """One process of `bench/workers`, alive until it is closed; its model stays loaded between questions.

    Raises WorkerError if `python` cannot be started.
    """

    def __init__(self, script: str, python: str, environment: dict[str, str] | None = None) -> None:
        self._script = script
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed below)
        pipe, command = subprocess.PIPE, [python, str(WORKERS / script)]
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._errors, encoding="utf-8", env=environment
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{script}: {python} does not start: {error.strerror}") from None

    def ask(self, do: str, **arguments: Any) -> Any:
        """The value of handler `do`. Raises WorkerError with what the process said."""
        assert self._process.stdin and self._process.stdout
        time.sleep(PAUSE)
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline() or "null")
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._errors.seek(0)
            words = self._errors.read()[-2000:].strip()
            raise WorkerError(f"{self._script}: ended with status {self._process.wait()}\n{words}")
        if "error" in answer:
            raise WorkerError(f"{self._script}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process. Idempotent."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream
            with suppress(BrokenPipeError):  # of a question that the process did not live to read
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def our_environment(isa: str = "", cache: str = "") -> dict[str, str]:
    """Ours, with the checkout importable; `isa` and `cache` are the runtime's own variables."""
    given = {"EDGE_GEMMA_ISA": isa, "EDGE_GEMMA_CACHE_DIR": cache}
    return os.environ | {"PYTHONPATH": str(ROOT)} | {name: value for name, value in given.items() if value}


def first_token(command: list[str], model: Path, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Seconds from starting `command` to its first byte of text (first_token), and its memory at that moment.

    own_first_token: less the seconds that the process says on stderr it spent importing. The memory is what `resident`
    tells. Raises WorkerError if no text comes.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process:
            assert process.stdout
            came = process.stdout.read(1)
            seconds = time.perf_counter() - start
            memory = resident(process.pid, model) if came else {}
            process.kill()
        errors.seek(0)
        said = errors.read()
    if not came:
        raise WorkerError(f"{' '.join(command)}: no text came\n{said[-2000:]}")
    imported = re.search(r"^import ([\d.]+)$", said, re.MULTILINE)
    return {"first_token": seconds, "own_first_token": seconds - float(imported[1] if imported else 0), **memory}


def resident(pid: int, model: Path) -> dict[str, float]:
    """Bytes of a process: the `peak` so far; now, `file`, pages of `model`, and `anonymous`, which no file backs.

    Empty where the system does not tell.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return {}
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status.read_text(), re.MULTILINE))
    maps = psutil.Process(pid).memory_maps()
    return {
        "peak": int(told["VmHWM"]) * 1024,
        "file": sum(area.rss for area in maps if area.path == str(model.resolve())),
        "anonymous": int(told["RssAnon"]) * 1024,
    }
