"""Gemma 4: logits of small random checkpoints against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_gemma import Gemma
from tests.conftest import TinyGguf
from tests.goldens.cases import token_ids
from tests.goldens.gemma4_cases import GEMMA4_CASES, Gemma4Case, write_gguf
from tests.goldens.real import DATA

Floats = npt.NDArray[np.float32]

GOLDENS = [(case.name, length) for case in GEMMA4_CASES.values() for length in case.lengths]


@pytest.fixture(scope="module")
def goldens() -> dict[str, Floats]:
    with np.load(DATA / "transformers_gemma4.npz") as file:
        return dict(file)


def logits(path: Path, case: Gemma4Case, length: int) -> Floats:
    with Gemma(path, context=256, threads=2, kv_type="f32") as model:
        return model.logits(token_ids(case, length))


@pytest.mark.parametrize(("name", "length"), GOLDENS)
def test_float32_file_gives_the_logits_of_transformers(
    tiny_gguf: TinyGguf, goldens: dict[str, Floats], name: str, length: int
) -> None:
    expected = goldens[f"{name}/{length}"]
    found = logits(tiny_gguf(name), GEMMA4_CASES[name], length)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_gate_and_up_of_experts_may_be_apart(tmp_path: Path, tiny_gguf: TinyGguf) -> None:
    """As in early files; the same bits."""
    case = GEMMA4_CASES["gemma4-26b"]
    write_gguf(case, tmp_path / "split.gguf", split_experts=True)
    assert np.array_equal(logits(tmp_path / "split.gguf", case, 20), logits(tiny_gguf(case.name), case, 20))


def test_a_file_without_scales_of_layers_has_ones(tmp_path: Path) -> None:
    case = GEMMA4_CASES["gemma4-12b"]
    write_gguf(case, tmp_path / "without.gguf", without=("layer_output_scale",))
    write_gguf(case, tmp_path / "ones.gguf", ones=("layer_output_scale",))
    assert np.array_equal(logits(tmp_path / "without.gguf", case, 20), logits(tmp_path / "ones.gguf", case, 20))
