"""Each format's traits, and the definition's unpacking, against the dequantizers of the gguf package."""

from __future__ import annotations

from functools import cache
from typing import Any

import gguf
import numpy as np
import pytest
from numba import njit

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.layout import LANES, ZEROS
from edge_gemma.kernels.ops import formats
from edge_gemma.kernels.ops.formats import INT_FORMATS
from edge_gemma.kernels.reference import formats as reference_formats
from edge_gemma.kernels.simd import vocabulary as simd
from tests.kernels.compiled import config  # noqa: F401  (compile for the kernels' CPU)
from tests.kernels.harness import FLOAT_NAMES, INT_NAMES, Array, assert_same_bits, random_rows, set_scales

EXTREME_SCALES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF], np.uint16)
"""Zeros, subnormals, the smallest normal number, +-1 and +-65504 as float16."""


def by_gguf(name: str, rows: Array) -> Array:
    return np.asarray(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name]))


def all_bits(name: str, rows: int, columns: int) -> Array:
    """Random bytes with extreme scales."""
    rng, fmt = np.random.default_rng(rows), FORMATS[name]
    blocks = rng.integers(0, 256, (rows, columns // fmt.block, fmt.nbytes), dtype=np.uint8)
    set_scales(name, blocks, lambda shape: rng.choice(EXTREME_SCALES, shape).view(np.float16))
    if name == "MXFP4":  # every power of two whose products are finite, those of the smallest numbers often
        blocks[..., 0] = rng.choice([*range(253), *[0, 1, 2] * 20], blocks.shape[:2])
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_definition_dequantizes_as_gguf_does(name: str) -> None:
    fmt = FORMATS[name]
    rows = np.random.default_rng(0).integers(0, 256, (9, 512 // fmt.block * fmt.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales: infinities and NaN too
        assert_same_bits(reference_formats.dequantize(name, rows), by_gguf(name, rows))


@cache
def make_unpack(name: str) -> Any:
    """(address, stride, file blocks, out): each 32-block as its traits give it, one vector after another."""
    fmt = INT_FORMATS[name]
    blocks, nbytes, subs, mins = fmt.blocks, fmt.layout.nbytes, fmt.subs, fmt.mins
    vector = 4 * LANES

    @njit
    def unpack(address: Any, stride: Any, count: Any, out: Any) -> None:
        for b in range(count):
            for i in range(blocks):
                at = address + b * nbytes
                w = formats.weights(fmt, at, stride, i)
                for k in range(8):
                    simd.store_int(out + k * vector, w[k])
                simd.store(out + 8 * vector, formats.scale(fmt, at, stride, i))
                if subs == 2:
                    s = formats.subscales(fmt, at, stride, i)
                    simd.store_int(out + 9 * vector, s[0])
                    simd.store_int(out + 10 * vector, s[1])
                if mins:
                    m = formats.minimum(fmt, at, stride, i)
                    simd.store(out + 11 * vector, m[0])
                    simd.store(out + 12 * vector, m[1])
                out += 13 * vector

    return unpack


def traits(name: str, rows: Array, columns: int) -> tuple[Array, Array, Array, Array]:
    """Unsigned weights (R, B, 2, 16), scale (R, B), subscales and minima (R, B, 2) of LANES rows."""
    blocks = columns // 32
    out = np.zeros((blocks, 13, LANES), np.int32)
    make_unpack(name)(rows.ctypes.data, rows.strides[0], columns // FORMATS[name].block, out.ctypes.data)
    weights = out[:, :8].swapaxes(1, 2).copy().view(np.uint8).reshape(blocks, LANES, 2, 16).swapaxes(0, 1)
    scale, subscales, minima = out[:, 8].T, out[:, 9:11].transpose(2, 0, 1), out[:, 11:].transpose(2, 0, 1)
    return weights, scale.copy().view(np.float32), subscales, minima.copy().view(np.float32)


@pytest.mark.parametrize("gap", [0, 1, 7])
@pytest.mark.parametrize("name", INT_NAMES)
def test_traits_are_the_bytes_meaning(name: str, gap: int) -> None:
    """Rows at odd addresses and odd distances; every 32-block of several file blocks."""
    columns = 3 * 256
    rows = all_bits(name, LANES, columns)
    memory = np.zeros((LANES, rows.shape[1] + gap), np.uint8)
    apart = np.concatenate([[0], memory.ravel()]).astype(np.uint8)[1:].reshape(memory.shape)[:, : rows.shape[1]]
    apart[:] = rows
    weights, scale, subscales, minima = traits(name, apart, columns)
    fmt, zero = INT_FORMATS[name], ZEROS.get(name, 0)
    factor = scale[:, :, None] * (subscales.astype(np.float32) if fmt.subs == 2 else np.float32(1))
    numbers = weights.view(np.int8) if fmt.wide and not zero else weights
    values = (numbers.astype(np.int32) - zero).astype(np.float32) * factor[..., None]
    values = values + (minima[..., None] if fmt.mins else np.float32(0))
    assert np.array_equal(values.reshape(LANES, -1), by_gguf(name, rows))
    assert weights.max() <= fmt.top


@pytest.mark.parametrize("name", INT_NAMES)
def test_facts(name: str) -> None:
    fmt = INT_FORMATS[name]
    assert fmt.layout is FORMATS[name] and fmt.blocks % fmt.group == 0
    assert fmt.wide == (name in ("Q8_0", "IQ4_NL", "IQ4_XS"))
    assert fmt.mins == (name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))


def test_every_format_has_a_kernel() -> None:
    assert set(INT_FORMATS) == set(INT_NAMES) and set(simd.FLOAT_LOADS) == set(FLOAT_NAMES)
    assert random_rows("BF16", 2, 32, 0).shape == (2, 64)
