"""Runs that are interrupted, resumed or out of time, and the processes they ask; nothing is timed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import processes, record, rounds, side_by_side
from bench.cases import Case
from bench.models import Facts
from bench.processes import Worker, WorkerError, first_token, resident
from bench.rounds import Setup, Skipped
from bench.side_by_side import Run, new_result, open_result

CASES = [Case("270m-Q4_K_M", "short", 2), Case("270m-Q4_K_M", "rows", 2)]
FACTS = Facts(10**8, 10**8, 10**8, 10**8, 0, 1000, ((0, 1024),))


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A folder with an empty model file whose facts are known."""
    (tmp_path / "270m-Q4_K_M.gguf").touch()
    monkeypatch.setattr(Facts, "of", lambda _path: FACTS)
    return Setup(tmp_path, "", "", "", None)


def run(setup: Setup, cases: list[Case], minutes: float = 10, resume: bool = False) -> record.Record:
    output = setup.models / "result.json"
    result = open_result(output, resume)
    Run(setup, output, result, time.monotonic() + 60 * minutes).all(cases)
    return record.load(output)


def measured(case: Case, *_: Any) -> dict[str, Any]:
    return {"rounds": [{"ours": {"kind": case.kind}}]}


def test_an_interrupted_run_goes_on_where_it_was(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(case: Case, *_: Any) -> dict[str, Any]:
        asked.append(case.kind)
        if asked == ["short", "rows"]:
            raise KeyboardInterrupt
        return measured(case)

    monkeypatch.setattr(rounds, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(setup, CASES)
    assert list(run(setup, CASES, resume=True)["cases"]) == [case.name for case in CASES]
    assert asked == ["short", "rows", "rows"]


def test_a_result_is_not_overwritten(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "measure", measured)
    run(setup, CASES)
    with pytest.raises(SystemExit, match="exists; --resume continues it"):
        run(setup, CASES)


def test_results_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    other = new_result()
    other["machine"]["cpu"] = "another"
    record.save(other, tmp_path / "r.json")
    with pytest.raises(SystemExit, match="is of another machine"):
        open_result(tmp_path / "r.json", resume=True)


@pytest.mark.parametrize(
    ("error", "reason", "failed"),
    [(Skipped("no room"), "no room", 0), (WorkerError("no answer"), "failed: no answer", 1)],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(
    error: Exception,
    reason: str,
    failed: int,
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(case: Case, *_: Any) -> dict[str, Any]:
        if case.kind == "short":
            raise error
        return measured(case)

    monkeypatch.setattr(rounds, "measure", fails)
    output = setup.models / "result.json"
    running = Run(setup, output, open_result(output, False), time.monotonic() + 600)
    running.all(CASES)
    result = record.load(output)
    assert result["skipped"] == {"270m-Q4_K_M/short/t2": reason}
    assert list(result["cases"]) == ["270m-Q4_K_M/rows/t2"]
    assert running.failed == failed
    assert f"270m-Q4_K_M/short/t2: skipped: {reason}" in capsys.readouterr().err
    monkeypatch.setattr(rounds, "measure", measured)
    assert run(setup, CASES, resume=True)["skipped"] == {}


def test_a_missing_file_is_a_reason_that_says_how(setup: Setup) -> None:
    reason = run(setup, [Case("27b-Q4_0", "short", 2)])["skipped"]["27b-Q4_0/short/t2"]
    assert reason == "no 27b-Q4_0.gguf in the folder of models; `--make` makes it: random blocks, gemma2-27b"


def test_no_case_begins_that_would_end_too_late(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "measure", measured)
    result = run(setup, CASES, minutes=0.01)
    assert not result["cases"]
    assert "more than is left of --budget-minutes" in result["skipped"]["270m-Q4_K_M/short/t2"]


# ---- processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker with four handlers."""
    (tmp_path / "echo.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(processes.WORKERS)!r})\n"
        "from serve import serve\n"
        "def noisy():\n"
        "    print('noise')\n"
        "    os.write(1, b'more noise')\n"
        "    return 1\n"
        "def fail():\n"
        "    raise ValueError('no')\n"
        "def end():\n"
        "    sys.exit('out of memory')\n"
        "serve({'add': lambda a, b: a + b, 'noisy': noisy, 'fail': fail, 'end': end})\n"
    )
    monkeypatch.setattr(processes, "WORKERS", tmp_path)
    return Worker("echo.py", sys.executable)


def test_a_worker_answers_until_it_ends(echo: Worker) -> None:
    with echo:
        assert echo.ask("add", a=1, b=2) == 3
        assert echo.ask("noisy") == 1
        with pytest.raises(WorkerError, match=r"echo\.py: fail: ValueError: no"):
            echo.ask("fail")
        assert echo.ask("add", a="x", b="y") == "xy"
        with pytest.raises(WorkerError, match=r"(?s)echo\.py: ended with status 1.*out of memory"):
            echo.ask("end")


def test_first_token_takes_time_and_memory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(bytes(10**6))
    program = (
        "import mmap, sys, time\n"
        "print('import 0.125', file=sys.stderr, flush=True)\n"
        f"file = open({str(model)!r}, 'rb')\n"
        "pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(pages[::4096])\n"
        "print('text', flush=True)\n"
        "time.sleep(60)\n"
    )
    seen = first_token([sys.executable, "-c", program], model)
    assert seen["import"] == 0.125
    assert seen["seconds"] > 0
    if Path("/proc/self/status").exists():
        assert seen["file"] >= 10**6
        assert seen["peak"] > seen["anonymous"] > 0


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"(?s)no text came.*what went wrong"):
        first_token([sys.executable, "-c", "raise SystemExit('what went wrong')"], tmp_path)


def test_memory_of_a_process_that_no_system_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "Path", lambda _: tmp_path / "nowhere")
    assert resident(os.getpid(), tmp_path) == {}


def test_the_list_of_cases_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side_by_side.show(CASES, tmp_path)
    assert "270m-Q4_K_M/short/t2" in capsys.readouterr().out
