"""`edge-gemma tune`: its table, what it keeps, and its errors. The measuring itself is tested with the tuner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_gemma.commands.cli import main
from edge_gemma.commands.tune import USUAL
from edge_gemma.kernels.jit.library import Library
from edge_gemma.kernels.tuning import choices, tuner
from edge_gemma.kernels.tuning.strategies import STRATEGIES
from edge_gemma.kernels.tuning.tuner import Matrix, Measurement, Result
from tests.conftest import TinyGguf


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Measuring that takes no time: "none" is twice as fast as all others. How much the threads get can be set."""
    state = {"received": 1.0}

    def measure(classes: dict[str, Matrix], strategies: Sequence[str], *_: object) -> Result:
        rates = {name: [2e10 if name == "none" else 1e10] * 9 for name in strategies}
        return Result([Measurement(name, matrix, rates) for name, matrix in classes.items()], state["received"], 9)

    library = Library(tmp_path)
    monkeypatch.setattr(tuner, "measure", measure)
    monkeypatch.setattr(choices, "shared", lambda: library)
    monkeypatch.setenv("EDGE_GEMMA_TUNE", "on")
    return state


def test_the_table_has_each_strategy_and_the_choice(
    measured: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune"]) == 0
    out = capsys.readouterr().out
    head = next(line for line in out.splitlines() if line.startswith("class"))
    assert all(name in head.split() for name in STRATEGIES)
    rows = [line for line in out.splitlines() if line.startswith(("near", "far"))]
    assert rows and all(line.split()[-1] == "none" and "20.0" in line and "10.0*" in line for line in rows)
    assert "Kept for later starts." in out and set(choices.load().measured.values()) == {"none"}


def test_a_model_has_its_own_classes(
    measured: dict[str, float], tiny_gguf: TinyGguf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(tiny_gguf("gemma2-256", "Q8_0")), "--json", "--dry-run", "-t", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {one["format"] for one in report["classes"].values()} == {"Q8_0"}
    assert report["threads"] == 1 and not report["kept"] and choices.load().measured == {}


def test_a_busy_machine_is_said_and_keeps_nothing(
    measured: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    measured["received"] = 0.6
    assert main(["tune"]) == 1
    assert "other programs were running" in capsys.readouterr().out and choices.load().measured == {}


def test_wrong_use_is_named(
    measured: dict[str, float], tiny_gguf: TinyGguf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--seconds", "0"]) == 2
    assert "--seconds: 0 is not in 0..600" in capsys.readouterr().err
    assert main(["tune", str(tiny_gguf("gemma2-256", "F32"))]) == 2
    assert "no quantized weights" in capsys.readouterr().err


def test_usual_sizes_are_of_all_classes() -> None:
    formats = {name for name, _ in USUAL}
    assert {"Q4_0", "Q4_K", "Q6_K", "Q8_0"} == formats
