"""Block bytes equal the `gguf` package's reference quantization; but for grids of Q4_0, see `test_grids.py`."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.quantize import blocks

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
NO_GRIDS = [name for name in TYPES if name != "Q4_0"]  # few different values are easily on one
SMALLEST = 2.0**-126 * 8 * 127  # below it a scale's reciprocal may overflow, and the reference is left to the CPU


def reference(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])).view(np.uint8)


edge_values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 127.0, -127.0, 63.5, 8.0, -8.0, 7.5, 1e-30, -3e4, 6.5e4]),
    st.floats(-6e4, 6e4, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
)


@pytest.mark.parametrize("name", NO_GRIDS)
@settings(max_examples=300, deadline=None)
@given(data=hnp.arrays(np.float32, (3, 64), elements=edge_values))
def test_edge_values(name: str, data: NDArray[np.float32]) -> None:
    largest = np.abs(data).reshape(-1, 32).max(axis=1)
    data.reshape(-1, 32)[(largest > 0) & (largest < SMALLEST)] = 0
    assert np.array_equal(blocks.encode(data, name), reference(data, name))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("spread", [1e-20, 1e-3, 1.0, 3e3])
def test_random_rows(name: str, spread: float) -> None:
    values = (np.random.default_rng(1).standard_normal((257, 1024)) * spread).astype(np.float32)
    assert np.array_equal(blocks.encode(values, name), reference(values, name))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_rounding_of_halves(name: str) -> None:
    """Every multiple of 1/16 between the largest values, so that each half between two levels is met.

    Neighbours are far apart, for a block of nearly one value is on a grid of Q4_0.
    """
    values = np.zeros((512, 32), np.float32)
    values[:, 0] = -8.0 if name == "Q4_0" else 127.0
    values[:, 1:] = (np.arange(512 * 31).reshape(31, 512).T % 4065 - 2032) / 16 * (1 / 16 if name == "Q4_0" else 1)
    assert np.array_equal(blocks.encode(values, name), reference(values, name))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("value", [1e-45, -1e-40, 1e-38])
def test_blocks_below_every_scale_become_zero(name: str, value: float) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, 5] = value
    assert not blocks.decode(blocks.encode(values, name), name).any()


@pytest.mark.parametrize(
    ("name", "value"), [("F16", 65520.0), ("BF16", 3.4e38), ("Q4_0", -530000.0), ("Q8_0", 8.4e6), ("Q8_0", -3e38)]
)
def test_overflow_names_the_row(name: str, value: float) -> None:
    values = np.ones((4, 64), np.float32)
    values[2, 40] = value
    with pytest.raises(blocks.OutOfRangeError) as caught:
        blocks.encode(values, name)
    assert caught.value.row == 2


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_decoding_equals_the_reference(name: str) -> None:
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 60, (5, FORMATS[name].row_bytes(512)), dtype=np.uint8)
    expected = raw.view("<f4") if name == "F32" else gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert np.array_equal(blocks.decode(raw, name), expected)


def test_rows_that_are_not_contiguous() -> None:
    values = np.random.default_rng(3).standard_normal((8, 128)).astype(np.float32)[::2]
    assert np.array_equal(blocks.encode(values, "Q4_0"), reference(np.ascontiguousarray(values), "Q4_0"))
