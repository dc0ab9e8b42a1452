"""Runs that are interrupted, resumed or impossible, and the processes they ask; nothing is timed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import processes, rounds, side_by_side
from bench.cases import Case
from bench.models import Facts
from bench.processes import Worker, WorkerError, first_token, resident
from bench.results import Line, Result, measurement
from bench.rounds import Setup, Skipped
from bench.side_by_side import header, opened, run
from bench.synthetic import SHAPES, Shape

CASES = [Case("270m-Q4_K_M", "short", 2), Case("270m-Q4_K_M", "rows", 2)]
SHORT, ROWS = (case.name for case in CASES)
FACTS = Facts(10**8, 10**8, 10**8, 10**8, 0, 1000, ((0, 1024),), ((0, 1024),))


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A folder with an empty model file whose facts are known."""
    (tmp_path / "270m-Q4_K_M.gguf").touch()
    monkeypatch.setattr(Facts, "of", lambda _path: FACTS)
    return Setup(tmp_path, {})


def measured(setup: Setup, *cases: Case, resume: bool = False) -> tuple[Result, int]:
    output = setup.models / "result.jsonl"
    failed = run(list(cases or CASES), setup, opened(output, header(setup), resume), output)
    return Result.load(output), failed


def as_measured(case: Case, *_: Any) -> list[Line]:
    note: list[Line] = [{"case": case.name, "note": "a note"}] if case.kind == "rows" else []
    return [measurement(case, "ours", "tg64", 0, 1.0), *note]


def test_an_interrupted_run_goes_on_where_it_was(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interrupted(case: Case, *_: Any) -> list[Line]:
        asked.append(case.kind)
        if asked == ["short", "rows"]:
            raise KeyboardInterrupt
        return as_measured(case)

    monkeypatch.setattr(rounds, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(setup)
    result, failed = measured(setup, resume=True)
    assert asked == ["short", "rows", "rows"] and failed == 0
    assert list(result.cases()) == [SHORT, ROWS] and result.said("note") == [(ROWS, "a note")]
    assert [result.cases()[name].run is result.runs[n] for n, name in enumerate((SHORT, ROWS))] == [True, True]
    assert result.cases()[ROWS]["run", "seconds"][0] >= 0


def test_a_result_is_not_overwritten(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "measure", as_measured)
    measured(setup)
    with pytest.raises(ValueError, match="exists; --resume continues it"):
        measured(setup)


def test_results_of_two_machines_are_not_mixed(setup: Setup) -> None:
    head = header(setup)
    Result([head | {"machine": head["machine"] | {"cpu": "another"}}]).save(setup.models / "r.jsonl")
    with pytest.raises(ValueError, match="is of another machine"):
        opened(setup.models / "r.jsonl", head, resume=True)


@pytest.mark.parametrize(
    ("error", "reason", "failed"),
    [(Skipped("no room"), "no room", 0), (WorkerError("no answer"), "failed: no answer", 1)],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(
    error: Exception, reason: str, failed: int, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(case: Case, *_: Any) -> list[Line]:
        if case.kind == "short":
            raise error
        return as_measured(case)

    monkeypatch.setattr(rounds, "measure", fails)
    result, count = measured(setup)
    assert result.said("skipped") == [(SHORT, reason)] and count == failed
    assert list(result.cases()) == [ROWS]
    monkeypatch.setattr(rounds, "measure", as_measured)
    assert measured(setup, resume=True)[0].said("skipped") == []


def test_a_missing_file_is_a_reason_that_says_how(setup: Setup) -> None:
    result, _ = measured(setup, Case("27b-Q4_0", "short", 2))
    reason = "no 27b-Q4_0.gguf in the folder of models; `--make` makes it: random blocks, gemma2-27b"
    assert result.said("skipped") == [("27b-Q4_0/short/t2", reason)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing", "-o", "r.jsonl"], "no case has such a name"),
        ([], "-o is needed"),
        (["-o", "nowhere/r.jsonl"], "-o: there is no folder nowhere"),
        (["-o", "r.jsonl", "--peer-python", "/no/python"], "llama.py: /no/python does not start: No such file"),
        (["-o", "r.jsonl", "--peer-python", sys.executable], "No module named 'llama_cpp'"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--models", "models", *options])
    with pytest.raises(SystemExit):
        side_by_side.main()
    assert message in capsys.readouterr().err


def test_the_list_of_cases_needs_no_model_and_make_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "gemma2-2b", Shape(1, 256, 256, 2, 1, 128, vocab=300))
    command = ["side_by_side.py", "--models", str(tmp_path), "--list", "--only", "2b-Q4_0/short/t2", "--rounds", "7"]
    for options in (["-t", "2"], ["-t", "2", "--make"]):
        monkeypatch.setattr(sys, "argv", command + options)
        assert side_by_side.main() == 0
    without, having = capsys.readouterr().out.splitlines()[::2]
    assert without.startswith(f"{'2b-Q4_0/short/t2':36} 7 rounds ") and without == f"{having}  no 2b-Q4_0.gguf"
    assert [path.name for path in tmp_path.iterdir()] == ["2b-Q4_0.gguf"]


# ---- processes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker with four handlers."""
    (tmp_path / "echo.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(processes.WORKERS)!r})\n"
        "from serve import serve\n"
        "class Echo:\n"
        "    def add(self, a, b):\n"
        "        return a + b\n"
        "    def noisy(self):\n"
        "        print('noise')\n"
        "        os.write(1, b'more noise')\n"
        "        return 1\n"
        "    def fail(self):\n"
        "        raise ValueError('no')\n"
        "    def end(self):\n"
        "        sys.exit('out of memory')\n"
        "serve(Echo())\n"
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
        "print('import 0.015625', file=sys.stderr, flush=True)\n"
        f"file = open({str(model)!r}, 'rb')\n"
        "pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(pages[::4096])\n"
        "print('text', flush=True)\n"
        "time.sleep(60)\n"
    )
    seen = first_token([sys.executable, "-c", program], model)
    assert seen["first_token"] - seen["own_first_token"] == pytest.approx(0.015625)
    assert seen["first_token"] > 0
    if Path("/proc/self/status").exists():
        assert seen["file"] >= 10**6
        assert seen["peak"] > seen["anonymous"] > 0


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"(?s)no text came.*what went wrong"):
        first_token([sys.executable, "-c", "raise SystemExit('what went wrong')"], tmp_path)


def test_memory_of_a_process_that_no_system_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "Path", lambda _: tmp_path / "nowhere")
    assert resident(os.getpid(), tmp_path) == {}
