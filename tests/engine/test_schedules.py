"""Whatever runs beside it, an answer is token for token what it is alone, and logits are the same bits.

`python -m tools.many_schedules 10000` runs as many schedules as one likes. Those without kernels: `test_loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TinyGguf
from tests.engine.schedules import Alone, differences
from tests.gemma.helpers import workers
from tools import many_schedules


@pytest.fixture(scope="module")
def alone(tiny_gguf: TinyGguf) -> Iterator[Alone]:
    made = Alone(tiny_gguf("gemma2-2b"))
    yield made
    made.close()


@settings(max_examples=24)
@given(seed=st.integers(0, 2**64))
def test_any_schedule(tiny_gguf: TinyGguf, alone: Alone, seed: int) -> None:
    assert differences(tiny_gguf("gemma2-2b"), seed, alone) == []


def test_a_difference_would_be_found(tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch, alone: Alone) -> None:
    """Tables that come from the cache with one token too many."""
    from edge_gemma.engine import prefix_cache

    def reaches(self: prefix_cache.Checkpoint, prompt: object) -> int:
        return min(len(self.tokens), len(prompt) - 1) if self.table.length else 0  # type: ignore[arg-type]

    monkeypatch.setattr(prefix_cache.Checkpoint, "reaches", reaches)
    assert any(differences(tiny_gguf("gemma2-2b"), seed, alone) for seed in range(20))


def test_nothing_is_left(tiny_gguf: TinyGguf, alone: Alone) -> None:
    before = len(workers())
    differences(tiny_gguf("gemma2-2b"), 1, alone)
    assert len(workers()) == before


def test_a_long_run_tells_what_differs_and_where_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def differences(seed: int) -> list[str]:
        if seed == 9:
            raise KeyboardInterrupt
        return ["another token"] if seed == 7 else []

    assert many_schedules.run(differences, 5, 3) == many_schedules.run(differences, 7, 100) == 1
    assert many_schedules.run(differences, 8, 100) == 0
    said = capsys.readouterr()
    verdicts = [line.split(" s, ")[1] for line in said.out.splitlines()]
    assert verdicts == ["1 differ: [7]; the next is --from 8", "1 differ: [7]; the next is --from 9",
                        "none differs; the next is --from 9"]  # fmt: skip
    assert said.err.count("seed 7:\n  another token\n") == 2
