from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_gemma import Gemma
from edge_gemma.gemma import Completion
from tests.conftest import TinyGguf
from tests.gemma.helpers import GREEDY, PROMPT, ignore_present_workers


@pytest.fixture(scope="module")
def path(tiny_gguf: TinyGguf) -> Path:
    return tiny_gguf("gemma2-2b")


@pytest.fixture
def model(path: Path) -> Iterator[Gemma]:
    with Gemma(path, threads=2, chunk=16) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(path: Path) -> Completion:
    with Gemma(path) as opened:
        return opened.generate(PROMPT, max_tokens=24, **GREEDY)


@pytest.fixture(scope="module", autouse=True)
def workers_of_other_tests() -> None:
    ignore_present_workers()
