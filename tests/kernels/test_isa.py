"""The tests of compiled code again, in processes that are forced down to each lower instruction set this CPU has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_gemma.kernels.isa import available, current

LOWER = [isa.name for isa in available() if isa is not current()] if "EDGE_GEMMA_ISA" not in os.environ else []
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEPENDENT = ("simd", "ops", "threads", "tuning")
"""The folders of tests whose outcome depends on the instruction set."""
PART = {"avxvnni": ("simd/test_dots_and_tiles.py", "ops/test_matvec_matmul.py", "ops/test_assembly.py")}
"""It is as avx2 but for the dot product."""

Run = tuple["subprocess.Popen[bytes]", Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """One process per instruction set, started together, as each keeps one core busy."""
    folder = tmp_path_factory.mktemp("isa")
    started: dict[str, Run] = {}
    for name in LOWER:
        files = PART.get(name, DEPENDENT)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f) for f in files)]
        with (folder / name).open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "EDGE_GEMMA_ISA": name, "EDGE_GEMMA_BRIEF_TESTS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started[name] = process, folder / name
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", LOWER)
def test_on_lower_instruction_sets(name: str, runs: dict[str, Run]) -> None:
    process, log = runs[name]
    status = process.wait(timeout=900)
    text = log.read_text("utf-8", "replace")
    print(f"{name}: {text.splitlines()[-1]}")
    assert status == 0, text[-8000:]
