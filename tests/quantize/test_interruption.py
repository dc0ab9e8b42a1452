"""Killed, interrupted or out of disk at any point: the old file or the whole new one is there, and nothing is left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.quantize import tiny_checkpoint as tiny

if os.name != "posix":
    pytest.skip("forks, signals and limits of POSIX", allow_module_level=True)

from tests.quantize.forking import Case, random_kills

ROOT = Path(__file__).resolve().parents[2]
EXIT_WRITTEN, EXIT_OUTPUT, EXIT_INTERRUPTED = 0, 3, 130
Run = Callable[[list[Case]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "gemma-tiny"
    tiny.write_checkpoint(path, "gemma", num_hidden_layers=1)
    return path


def fork(folder: Path, work: Path, cases: list[Case], *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.quantize.forking", str(folder), str(work)]
    command += [json.dumps([vars(case) for case in cases]), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """Runs cases; holds for each that the destination is old or new, and that the next run is as if nothing was."""

    def outcomes(cases: list[Case]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = fork(folder, tmp_path, cases)["outcomes"]
        for case, outcome in zip(cases, found, strict=True):
            assert outcome["destination"] in ("old", "new") and outcome["rerun"] == "", (case, outcome)
            assert outcome["errors"].count("\n") <= 1, (case, outcome)
        return found

    return outcomes


@pytest.fixture(scope="module")
def calls(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """System calls of a conversion, in order."""
    names: list[str] = fork(folder, tmp_path_factory.mktemp("calls"), [])["calls"]
    assert names.count("replace") == 1 and names.count("fsync") >= 2 and names.count("write") > 10
    return names


def everywhere(what: str, calls: list[str]) -> list[Case]:
    return [Case(what, at, after) for at in range(len(calls)) for after in (False, True)]


def test_killed_at_every_step(run: Run, calls: list[str]) -> None:
    cases = everywhere("kill", calls)
    outcomes = run(cases)
    created, published = calls.index("open"), calls.index("replace")
    for case, outcome in zip(cases, outcomes, strict=True):
        begun = case.at > created or (case.at == created and case.after)
        done = case.at > published or (case.at == published and case.after)
        assert outcome["destination"] == ("new" if done else "old"), case
        assert outcome["status"] == -9, (case, outcome)
        assert outcome["leftovers"] == (1 if begun and not done else 0), case


def test_killed_at_random_times(run: Run) -> None:
    statuses = [outcome["status"] for outcome in run(random_kills(60, seed=0))]
    assert statuses.count(-9) >= 5 and set(statuses) <= {0, -9}


@pytest.mark.parametrize("what", ["interrupt", "terminate"])
def test_interrupted_at_every_step(run: Run, calls: list[str], what: str) -> None:
    cases = everywhere(what, calls)
    for case, outcome in zip(cases, run(cases), strict=True):
        assert outcome["status"] == EXIT_INTERRUPTED and outcome["leftovers"] == 0, (case, outcome)
        assert outcome["errors"] == "edge-gemma quantize: error: interrupted\n"


@pytest.mark.parametrize("what", ["full", "broken", "quota"])
def test_a_disk_that_fails_at_every_step(run: Run, calls: list[str], what: str) -> None:
    cases = [Case(what, at) for at, name in enumerate(calls) if name in ("open", "write", "fsync", "replace")]
    text = {"full": "No space left", "broken": "Input/output error", "quota": "quota exceeded"}[what]
    for case, outcome in zip(cases, run(cases), strict=True):
        assert outcome["status"] == EXIT_OUTPUT, (case, outcome)
        assert outcome["leftovers"] == 0 and text in outcome["errors"] and "out.gguf: " in outcome["errors"]


def test_writes_that_take_less_than_given(run: Run, calls: list[str]) -> None:
    outcomes = run([Case("short", at) for at, name in enumerate(calls) if name == "write"])
    assert all(outcome["status"] == EXIT_WRITTEN and outcome["destination"] == "new" for outcome in outcomes)


def test_a_limit_on_the_size_of_files(run: Run, folder: Path, tmp_path: Path) -> None:
    run([])
    size = (tmp_path / "out.gguf").stat().st_size
    limits = [1, *range(size // 50, size, size // 50), size - 1]
    for outcome in run([Case("limit", limit) for limit in limits]):
        assert outcome["status"] == EXIT_OUTPUT and outcome["destination"] == "old" and outcome["leftovers"] == 0
        assert "File too large" in outcome["errors"]
    assert run([Case("limit", size)])[0]["status"] == EXIT_WRITTEN


def test_killed_while_it_compares(folder: Path, tmp_path: Path) -> None:
    """The copy of the source that it makes is removed by the next run, in whatever state it was left."""
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog. " * 8)
    options = ["--type", "Q8_0", "--compare", str(tmp_path / "text"), "--compare-windows", "1"]
    work = tmp_path / "work"
    work.mkdir()
    calls: list[str] = fork(folder, work, [], *options)["calls"]
    created, copied = (at for at, name in enumerate(calls) if name == "replace")
    opened = [at for at, name in enumerate(calls[:created]) if name == "open"]
    cases = [Case("kill", at) for at in (opened[0] + 1, opened[1], opened[1] + 1, opened[1] + 5, created, created + 1)]
    cases += [Case("kill", copied), Case("kill", copied, after=True), Case("interrupt", created + 1)]
    outcomes = fork(folder, work, cases, *options)["outcomes"]
    assert [outcome["rerun"] for outcome in outcomes] == [""] * len(cases)
    assert [outcome["leftovers"] for outcome in outcomes] == [1, 1, 2, 2, 2, 2, 1, 0, 0]
    assert [outcome["destination"] for outcome in outcomes] == ["old"] * 7 + ["new", "old"]
