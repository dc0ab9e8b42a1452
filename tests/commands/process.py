"""`edge-gemma` as another process. Knows no single command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "edge_gemma")
PROMPT = "aa bb"
GREEDY = ("-n", "12", "--temp", "0")


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def cli(
    *arguments: str | Path, env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    done = raw(*map(str, arguments), env=env, stdin=stdin)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def raw(
    *arguments: str | bytes, env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=env or environment(), timeout=300, check=False)


def shell(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The command under a shell that did `script` first, such as to limit or to redirect."""
    command = ["sh", "-c", f'{script}; exec "$@"', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment(), timeout=300, check=False)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, env=environment(), **options)


def assert_one_line_error(done: subprocess.CompletedProcess[str], status: int, *fragments: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("edge-gemma: error: ")
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr
    assert done.stdout == ""
