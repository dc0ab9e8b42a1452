"""Every quantized format that is written: what gguf decodes it to, how small its errors are, equal bytes anywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.encode.rows import ENCODED
from edge_gemma.kernels.reference.formats import LEVELS
from edge_gemma.quantize import blocks

Floats = NDArray[np.float32]

RELATIVE_ERROR = {
    "Q2_K": 0.30, "Q3_K": 0.15, "Q4_0": 0.092, "Q4_1": 0.078, "Q4_K": 0.072, "IQ4_NL": 0.075, "IQ4_XS": 0.075,
    "Q5_0": 0.045, "Q5_1": 0.040, "Q5_K": 0.038, "Q6_K": 0.020, "Q8_0": 0.006,
}  # fmt: skip
"""RMS over RMS for normally distributed values, with a few percent to spare."""


def decode(raw: NDArray[np.uint8], name: str) -> Floats:
    return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))


def error(values: Floats, name: str, importance: Floats | None = None, weights: Floats | None = None) -> float:
    """Weighted RMS error over RMS of the values."""
    w = np.ones(values.shape[1]) if weights is None else weights.astype(np.float64)
    difference = decode(blocks.encode(values, name, importance), name).astype(np.float64) - values
    return float(np.sqrt((w * difference**2).mean() / (w * values.astype(np.float64) ** 2).mean()))


def tolerance(name: str) -> float:
    """How far off tiny values may be: float16 scales have steps of 2^-24, and Q8_0's is not chosen for its rounding."""
    return 127 * 2.0**-25 if name == "Q8_0" else 1e-6


def normal(rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


# ---- the plain way: scales from the extremes, values to the nearest level ------------------------------------------

SYMMETRIC = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 127}
SHARED = {"Q3_K": (16, 4, 32), "Q6_K": (16, 32, 128)}  # group, levels on a side, scales on a side
LINES = {"Q4_1": (32, 15, 0), "Q5_1": (32, 31, 0), "Q2_K": (16, 3, 15), "Q4_K": (32, 15, 63), "Q5_K": (32, 31, 63)}


def half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def scaled(x: Floats, scale: Floats, low: int, high: int) -> Floats:
    q = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return scale * np.clip(np.rint(q), low, high)


def plain(values: Floats, name: str) -> Floats:
    """What rounding to nearest gives, decoded."""
    if name in LINES:
        group, top, size = LINES[name]
        x = values.reshape(-1, group)
        low = x.min(axis=1, keepdims=True)
        low = np.minimum(low, 0) if size else low
        scale = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
        scale, low = (shared(scale, group, size), -shared(-low, group, size)) if size else (half(scale), half(low))
        return (scaled(x - low, scale, 0, top) + low).reshape(values.shape)
    if name.startswith("IQ4"):
        return table(values, name)
    group, side, size = SHARED.get(name, (32, SYMMETRIC.get(name, 0), 0))
    x = values.reshape(-1, group)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = np.abs(peak) / np.float32(side) if name == "Q8_0" else peak / np.float32(-side)
    scale = shared(scale, group, size - 1) if size else half(scale)
    return scaled(x, scale, -side, side if name == "Q8_0" else side - 1).reshape(values.shape)


def table(values: Floats, name: str) -> Floats:
    x = values.reshape(-1, 32)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = peak / np.float32(-127)
    scale = shared(scale, 32, 31) if name == "IQ4_XS" else half(scale)
    u = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return (scale * LEVELS[np.abs(u[..., None] - LEVELS).argmin(axis=-1)].astype(np.float32)).reshape(values.shape)


def shared(scale: Floats, group: int, size: int) -> Floats:
    """Scales as small integers times a float16, in blocks of 256 values."""
    per_block = scale.reshape(-1, 256 // group)
    factor = half(np.abs(per_block).max(axis=1, keepdims=True) / np.float32(size))
    n = np.rint(np.divide(per_block, factor, out=np.zeros_like(per_block), where=factor != 0))
    return (factor * n).reshape(-1, 1).astype(np.float32)


@pytest.mark.parametrize("name", ENCODED)
def test_errors_are_as_small_as_the_format_allows(name: str) -> None:
    assert error(normal(64, 1024), name) <= RELATIVE_ERROR[name]


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("shape", ["normal", "heavy", "positive", "large", "small"])
def test_never_worse_than_rounding_to_nearest(name: str, shape: str) -> None:
    values = normal(16, 768, seed=2)
    values = {
        "normal": values,
        "heavy": values**3,
        "positive": np.abs(values) + np.float32(0.1),
        "large": values * np.float32(3e3),
        "small": values * np.float32(1e-3),
    }[shape]
    naive = np.sqrt(((plain(values, name).astype(np.float64) - values) ** 2).sum() / (values.astype(float) ** 2).sum())
    limit = 1.02 if name in ("Q4_0", "Q8_0") else 1.0  # these divide by the scale before it is rounded, by contract
    assert error(values, name) <= naive * limit


@pytest.mark.parametrize("name", ENCODED)
def test_what_was_quantized_before_is_found_again(name: str) -> None:
    """But for what bfloat16 took away: published weights are often quantized ones, widened."""
    assert error(bfloat(plain(normal(64, 1024, seed=13), name)), name) <= 0.0023


@pytest.mark.parametrize(("name", "group", "size"), [("Q3_K", 16, 32), ("Q6_K", 16, 128), ("IQ4_XS", 32, 32)])
def test_what_llama_cpp_quantized_is_found_again(name: str, group: int, size: int) -> None:
    """It makes the largest scale of a block the negative number, which has no positive counterpart."""
    rng = np.random.default_rng(14)
    levels = {"Q3_K": np.arange(-4, 4), "Q6_K": np.arange(-32, 32), "IQ4_XS": LEVELS}[name]
    q = levels[np.clip(rng.normal(0.5, 0.2, (64, 256 // group, group)) * len(levels), 0, len(levels) - 1).astype(int)]
    q[:, :, 3] = levels[0]
    n = rng.integers(-size // 2, size // 2, (64, 256 // group, 1))
    n[:, 5] = -size
    values = (np.float32(2.0**-12) * n * q).astype(np.float32).reshape(16, 1024)
    assert error(bfloat(values), name) <= 0.0023


def bfloat(values: Floats) -> Floats:
    return blocks.decode(blocks.encode(values, "BF16"), "BF16")


@pytest.mark.parametrize("name", ENCODED)
def test_importance_lowers_the_errors_of_what_is_important(name: str) -> None:
    values = normal(32, 512, seed=3)
    importance = np.random.default_rng(4).exponential(size=512).astype(np.float32) ** 2 + np.float32(0.01)
    with_it, without = error(values, name, importance, importance), error(values, name, None, importance)
    assert with_it <= without * (0.97 if name != "Q8_0" else 1.0)


@pytest.mark.parametrize("name", ENCODED)
def test_only_ratios_of_importance_count(name: str) -> None:
    values = normal(4, 768, seed=5)
    importance = np.abs(normal(1, 768, seed=4))[0]
    encoded = blocks.encode(values, name, importance)
    assert np.array_equal(blocks.encode(values, name, 4 * importance), encoded)
    assert not np.array_equal(encoded, blocks.encode(values, name))


@pytest.mark.parametrize("name", ENCODED)
def test_equal_importance_is_least_squares(name: str) -> None:
    values = normal(32, 768, seed=5)
    ones = np.ones(768, np.float32)
    assert error(values, name, ones) <= error(values, name) * (1 + 1e-6)


@pytest.mark.parametrize("name", ENCODED)
def test_columns_without_importance_do_not_harm_the_others(name: str) -> None:
    values = normal(4, 512, seed=6)
    importance = (np.arange(512) % 2).astype(np.float32)
    assert error(values, name, importance, importance) <= error(values, name, None, importance) * (1 + 1e-6)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("importance", [None, np.ones(256, np.float32)], ids=["", "importance"])
def test_zeros_stay_zeros(name: str, importance: Floats | None) -> None:
    values = np.zeros((2, 256), np.float32)
    assert not decode(blocks.encode(values, name, importance), name).any()


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, -1e-4, 1e-30, -1e-40, 1e-45, 6e4, -6e4])
def test_blocks_of_one_value(name: str, value: float) -> None:
    values = np.full((1, 256), value, np.float32)
    got = decode(blocks.encode(values, name), name)
    tolerance = 0.08 if name in ("IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K") else 0.04
    assert np.abs(got - values).max() <= max(abs(value) * tolerance, 2.0**-20)


@pytest.mark.parametrize("name", ENCODED)
def test_one_huge_value_is_kept(name: str) -> None:
    values = normal(3, 512, seed=7) * np.float32(1e-3)
    values[1, 77], values[2, 300] = 5e4, -5e4
    got = decode(blocks.encode(values, name), name)
    assert np.isfinite(got).all()
    assert got[1, 77] == pytest.approx(5e4, rel=0.05)
    assert got[2, 300] == pytest.approx(-5e4, rel=0.05)


@pytest.mark.parametrize("name", ENCODED)
def test_the_largest_values_stay_finite(name: str) -> None:
    limit = np.float32(0.9999 * blocks._LIMITS[name])
    values = np.clip(normal(8, 512, seed=12), -1, 1) * limit
    values[1:3, ::2], values[3, 1:] = limit, -limit
    assert error(values, name) <= RELATIVE_ERROR[name]
    assert np.isfinite(decode(blocks.encode(values, name, np.abs(values[0])), name)).all()


edge_values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-38, 1e-20, 6e4, -6e4]),
    st.floats(-6e4, 6e4, width=32),
    st.floats(-(2.0**-14), 2.0**-14, width=32),
)
sizes = st.one_of(
    st.sampled_from([1e-45, 1e-20, 2e-20, 4e-20, 1e-19, 1.0, 6e4]),
    st.integers(1, int(np.float32(6e4).view(np.uint32))).map(lambda bits: float(np.uint32(bits).view(np.float32))),
)
"""About as many of each order of magnitude: the bits of a float32 are nearly its logarithm."""


@st.composite
def mixtures(draw: st.DrawFn) -> Floats:
    """(1, 256): a size for every 32 values, which are part of it, of either sign; and a few values of any size."""
    largest = draw(hnp.arrays(np.float32, (8, 1), elements=sizes, fill=st.nothing()))
    parts = draw(hnp.arrays(np.float32, (8, 32), elements=st.floats(-1, 1, width=32)))
    values = (largest * parts).reshape(1, 256)
    for column, value in draw(st.dictionaries(st.integers(0, 255), edge_values, max_size=3)).items():
        values[0, column] = value
    return values


@pytest.mark.parametrize("name", ENCODED)
@settings(max_examples=80, deadline=None)
@given(data=hnp.arrays(np.float32, (1, 256), elements=edge_values) | mixtures())
def test_any_values_decode_near_themselves(name: str, data: Floats) -> None:
    """Within a step of the widest scale that the values could ask for."""
    got = decode(blocks.encode(data, name), name)
    width = max(float(data.max()), 0.0) - min(float(data.min()), 0.0)
    assert np.isfinite(got).all()
    assert np.abs(got - data).max() <= 0.5 * width + tolerance(name)


@pytest.mark.parametrize("name", [n for n in ENCODED if n not in ("Q4_0", "Q8_0")])
def test_what_is_too_large_names_its_row(name: str) -> None:
    values = np.ones((4, 256), np.float32)
    values[2, 40] = -3e38
    with pytest.raises(blocks.OutOfRangeError) as caught:
        blocks.encode(values, name)
    assert caught.value.row == 2


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_do_not_depend_on_their_company(name: str, rows: int) -> None:
    columns = 256 if FORMATS[name].block == 256 else 96
    values = normal(7, columns, seed=8)
    importance = np.abs(normal(1, columns, seed=9))[0]
    for weights in (None, importance):
        assert np.array_equal(blocks.encode(values[:rows], name, weights), blocks.encode(values, name, weights)[:rows])


# ---- the same bytes everywhere ------------------------------------------------------------------------------------

CHECKED = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
SCRIPT = """
import hashlib, sys
from tests.quantize.test_encoders import digest
for name in sys.argv[1:]:
    print(name, digest(name))
"""


def digest(name: str) -> str:
    """Of rows with and without importance."""
    values = normal(8, 512, seed=10) * np.exp(normal(8, 512, seed=11))
    data = blocks.encode(values, name).tobytes() + blocks.encode(values, name, np.abs(values[0])).tobytes()
    return hashlib.sha256(data).hexdigest()


def test_bytes_do_not_depend_on_the_instruction_set() -> None:
    environment = os.environ | {"EDGE_GEMMA_ISA": "generic"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, *CHECKED]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert dict(line.split() for line in done.stdout.splitlines()) == {name: digest(name) for name in CHECKED}


def test_bytes_do_not_depend_on_threads() -> None:
    expected, found = digest("Q4_K"), []
    threads = [threading.Thread(target=lambda: found.append(digest("Q4_K"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
