"""The tuner: what it takes from its rounds, what it keeps, and when it does nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.jit.library import Library
from edge_gemma.kernels.tuning import choices, tuner
from edge_gemma.kernels.tuning.choices import Tuning, load, save, tuned_choices
from edge_gemma.kernels.tuning.strategies import CONTENDERS, DEFAULTS, default
from edge_gemma.kernels.tuning.tuner import Matrix, Measurement, Result, by_class, measure, tune_once

BIG = Matrix("Q4_0", FORMATS["Q4_0"].row_bytes(65536), 1 << 30)
FAR = "far block"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own, and tuning switched on."""
    monkeypatch.setenv("EDGE_GEMMA_TUNE", "on")
    library = Library(tmp_path)
    for module in (tuner, choices):
        monkeypatch.setattr(module, "shared", lambda: library)
    yield tmp_path


def rounds(**rates: list[float]) -> Measurement:
    usual = default(FAR)
    return Measurement(FAR, BIG, {usual: rates.pop("usual"), **rates})


def result(received: float = 1.0, count: int = 20, **rates: list[float]) -> Result:
    return Result([rounds(**rates)], received, count)


def test_the_default_stays_unless_another_wins_most_rounds() -> None:
    assert rounds(usual=[10.0] * 5, none=[10.2] * 5).best == default(FAR)
    assert rounds(usual=[10.0] * 5, none=[12.0, 12.0, 9.0, 9.0, 9.0]).best == default(FAR)
    assert rounds(usual=[10.0] * 5, none=[12.0, 12.0, 12.0, 9.0, 9.0]).best == "none"


def test_of_several_that_win_the_fastest_is_taken() -> None:
    assert rounds(usual=[10.0] * 4, none=[11.0] * 4, l3x2=[12.0] * 4).best == "l3x2"


def test_rounds_of_a_machine_that_drifts_are_compared_one_by_one() -> None:
    drifting = [10.0, 14.0, 20.0, 12.0]
    assert rounds(usual=drifting, none=[1.05 * rate for rate in drifting]).best == "none"
    assert rounds(usual=drifting, none=[0.99 * rate for rate in drifting]).best == default(FAR)


def test_a_class_is_represented_by_what_is_read_most() -> None:
    long, longer = FORMATS["Q4_0"].row_bytes(65536), FORMATS["Q8_0"].row_bytes(65536)
    matrices = [Matrix("Q4_0", long, 5), Matrix("Q8_0", longer, 8), Matrix("Q4_0", long, 4)]
    assert by_class(matrices) == {FAR: Matrix("Q4_0", long, 9)}


def test_a_real_measurement_has_every_contender() -> None:
    measured = measure({FAR: Matrix("Q4_0", FORMATS["Q4_0"].row_bytes(32768), 1)}, CONTENDERS, 2, 0.05)
    (one,) = measured.measurements
    assert set(one.rates) == {default(FAR), *CONTENDERS}
    assert {len(rates) for rates in one.rates.values()} == {measured.rounds}
    assert all(np.isfinite(rate) and rate > 1e7 for rates in one.rates.values() for rate in rates)
    assert 0 < measured.received < 1.5


def test_what_was_measured_is_kept_and_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(classes: dict[str, Matrix], *_: object) -> Result:
        calls.append(classes)
        return result(usual=[1.0] * 9, none=[2.0] * 9)

    monkeypatch.setattr(tuner, "measure", measured)
    tune_once([BIG], 2, [])
    assert calls == [{FAR: BIG}] and tuned_choices().of(FAR) == "none"
    tune_once([BIG], 2, [])
    assert len(calls) == 1
    monkeypatch.setenv("EDGE_GEMMA_TUNE", "off")
    assert tuned_choices() == DEFAULTS


def test_what_is_little_of_a_model_is_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(classes: dict[str, Matrix], *_: object) -> Result:
        calls.append(set(classes))
        return result(usual=[1.0] * 9, none=[2.0] * 9)

    monkeypatch.setattr(tuner, "measure", measured)
    little = Matrix("Q6_K", FORMATS["Q6_K"].row_bytes(65536), BIG.size // 4)
    tune_once([BIG, little], 2, [])
    assert calls == [{FAR}]


def test_a_busy_machine_is_left_for_later_and_not_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(*_: object) -> Result:
        calls.append(1)
        return result(received=0.5, usual=[1.0] * 9, none=[2.0] * 9)

    monkeypatch.setattr(tuner, "measure", measured)
    for _ in range(5):
        tune_once([BIG], 2, [])
    assert len(calls) == tuner.PATIENCE and tuned_choices() == DEFAULTS


def test_too_few_rounds_decide_nothing() -> None:
    assert result(count=tuner.LEAST_ROUNDS - 1, usual=[1.0], none=[2.0]).disturbed
    assert not result(count=tuner.LEAST_ROUNDS, usual=[1.0], none=[2.0]).disturbed


@pytest.mark.parametrize("why", ["off", "small", "no folder", "no memory"])
def test_nothing_is_measured(why: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Result:
        raise AssertionError

    monkeypatch.setattr(tuner, "measure", never)
    size = 1 << 20 if why == "small" else BIG.size
    if why == "off":
        monkeypatch.setenv("EDGE_GEMMA_TUNE", "off")
    if why == "no folder":
        choices.shared().folder = None
    if why == "no memory":
        monkeypatch.setattr(tuner, "_has_room", lambda: False)
    tune_once([Matrix(BIG.format, BIG.row_bytes, size)], 2, [])


def test_a_wrong_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_TUNE", "fast")
    with pytest.raises(ValueError, match="EDGE_GEMMA_TUNE='fast'"):
        tuned_choices()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"measured": 3}', b'{"measured": {"far block": "gone"}}', b'{"disturbed": "x"}']
)
def test_a_file_of_no_use_is_none(content: bytes, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    choices.write_object(choices._path(), content)  # type: ignore[arg-type]
    with caplog.at_level(logging.CRITICAL):
        assert load() == Tuning() and tuned_choices() == DEFAULTS


def test_a_folder_that_cannot_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(choices, "write_object", full)
    assert save(Tuning({FAR: "none"})) is False
