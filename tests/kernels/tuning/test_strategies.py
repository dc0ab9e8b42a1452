"""Classes of matrices and their strategies: by the CPU's caches, and as they were measured."""

from __future__ import annotations

import pytest

from edge_gemma.formats import FORMATS
from edge_gemma.kernels import caches
from edge_gemma.kernels.layout import LANES
from edge_gemma.kernels.tuning import strategies
from edge_gemma.kernels.tuning.strategies import DEFAULTS, STRATEGIES, Choices, class_of


@pytest.fixture
def l1(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(caches, "sizes", lambda: caches.CacheSizes(l1=size))
    return size


def row_bytes(name: str, columns: int) -> int:
    return FORMATS[name].row_bytes(columns)


@pytest.mark.parametrize("l1", [32 << 10], indirect=True)
def test_two_tiles_and_the_activations_fit_the_first_level_or_do_not(l1: int) -> None:
    fits = (l1 // (2 * LANES * 18 + 64)) * 32
    assert class_of("Q4_0", row_bytes("Q4_0", fits)) == "near block"
    assert class_of("Q4_0", row_bytes("Q4_0", fits + 32)) == "far block"
    assert class_of("Q6_K", row_bytes("Q6_K", 256)) == "near super"
    assert class_of("Q6_K", row_bytes("Q6_K", 65536)) == "far super"


@pytest.mark.parametrize(("l1", "level"), [(32 << 10, 2), (48 << 10, 1)], indirect=["l1"])
def test_the_default_follows_from_the_first_level_cache(l1: int, level: int) -> None:
    prefetch = STRATEGIES[DEFAULTS.of("far block")]
    assert prefetch and prefetch.level == level
    prefetch = STRATEGIES[DEFAULTS.of("near super")]
    assert prefetch and prefetch.level == level


def test_what_was_measured_comes_before_the_default() -> None:
    choices = Choices({"far block": "none"})
    assert choices.of("far block") == "none" and choices.of("far super") == DEFAULTS.of("far super")
    assert choices.for_matrix("Q4_0", row_bytes("Q4_0", 65536)) == "none"


def test_the_classes_of_a_model_are_described() -> None:
    described = Choices({"far block": "l2"}).describe(["far super", "far block", "far block"])
    assert described == {"far block": "l2, measured", "far super": f"{strategies.default('far super')}, default"}
