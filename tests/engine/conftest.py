"""What tests of the engine open: an engine without a model, and a small model with a saved sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_gemma import Gemma
from edge_gemma.engine.loop import Engine
from tests.conftest import TinyGguf
from tests.engine.fake_runner import FakeRunner
from tests.engine.saving import CONTEXT, SHORT, read


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    """It leaves nothing."""
    made = Engine(runner, slots=4, prefix_cache=10_000)
    yield made
    made.close()
    assert runner.closed and runner.pool.tables == 0


@pytest.fixture(scope="module")
def path(tiny_gguf: TinyGguf) -> Path:
    return tiny_gguf("gemma2-27b", "F16")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Gemma]:
    with Gemma(path, context=CONTEXT, threads=2) as opened:
        yield opened


@pytest.fixture
def saved(model: Gemma, tmp_path: Path) -> Path:
    """A short sequence."""
    read(model, SHORT).save(tmp_path / "saved")
    return tmp_path / "saved"
