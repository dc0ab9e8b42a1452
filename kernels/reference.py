"""Every kernel again in NumPy: slow, plain, and the definition of the kernels' results, bit for bit.

Knows no Numba, no address and no thread. What makes float32 sums equal to the last bit is their order, so the order
is part of each definition; it depends on LANES where a kernel adds across lanes. `fma` rounds once, as the CPU's does,
unless the instruction set has none (`generic`): then it rounds twice, as the kernels do there.

    T rows of activations   R rows of weights   B blocks of 32 columns   H heads   K key-value heads   D head's size
    S sequences   C slots of a cache
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.kernels.isa import current
from edge_gemma.kernels.layout import LANES, LINE, SPAN, ZEROS

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

f32 = np.float32


# ---- arithmetic --------------------------------------------------------------------------------------------------


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Floats:
    """a * b + c rounded once: the float64 sum of the exact product, rounded to odd, so that rounding again is exact.

    doi:10.1109/TC.2007.70819 (Boldo, Melquiond): emulation of a fused operation by rounding to odd.
    """
    a, b, c = (np.asarray(v, f32) for v in (a, b, c))
    if not current().fma:
        return a * b + c
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = np.isfinite(total) & (total.view(np.int64) & 1 == 0) & (error != 0)
    return np.where(even, np.nextafter(total, np.copysign(np.inf, error)), total).astype(f32)


def sum_lanes(x: Floats) -> Floats:
    """Sum over the last axis, LANES long: halves onto each other."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def _lanes(x: Floats) -> Floats:
    """(..., n) to (n / LANES, ..., LANES): what a loop over vectors meets, in order."""
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, LANES), -2, 0)


# ---- functions ---------------------------------------------------------------------------------------------------

EXP_LOW, EXP_HIGH = f32(-87.33654), f32(88.37626)


def _split(x: Floats) -> tuple[Floats, Floats]:
    """2^n and e^r - 1 for x = n ln 2 + r."""
    n = np.rint(x * f32(1.4426950408889634))
    r = fma(n, f32(-1.428606820309417e-06), fma(n, f32(-0.693145751953125), x))
    p = fma(r, f32(1 / 5040), f32(1 / 720))
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2):
        p = fma(p, r, f32(coefficient))
    with np.errstate(invalid="ignore"):  # a NaN's power does not matter: r is NaN
        return np.ldexp(f32(1), n.astype(np.int32)), fma(p * r, r, r)


def exp(x: ArrayLike) -> Floats:
    """e^x; 0 below EXP_LOW, constant above EXP_HIGH."""
    x = np.asarray(x, f32)
    power, p = _split(np.clip(x, EXP_LOW, EXP_HIGH))
    return np.where(x < EXP_LOW, f32(0), fma(p, power, power))


def tanh(x: ArrayLike) -> Floats:
    """(e^2x - 1) / (e^2x + 1)."""
    x = np.asarray(x, f32)
    power, p = _split(np.clip(x + x, f32(-20), f32(20)))
    m = fma(p, power, power - f32(1))
    return m / (m + f32(2))


def gelu(x: ArrayLike) -> Floats:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    x = np.asarray(x, f32)
    return x / (f32(1) + exp(f32(-2 * 0.7978845608028654) * fma(x * x * x, f32(0.044715), x)))


# ---- formats -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Blocks of 32 as integers and what they are worth: scale * subscale * value + minimum, halves of 16 apart."""

    values: Ints  # (R, B, 2, 16), zero subtracted
    scale: Floats  # (R, B)
    subscales: Ints | None = None  # (R, B, 2)
    minimum: Floats | None = None  # (R, B, 1), or (R, B, 2) beside subscales


def _fields(data: Bytes, groups: int, bits: int) -> Ints:
    """Bit fields of bytes: of each of `groups` runs, the lowest fields of all its bytes, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = (data.reshape(len(data), groups, 1, -1) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(data), -1).astype(np.int32)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as a column."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(f32)


def _four_bits(blocks: Bytes, at: int) -> Ints:
    return _fields(blocks[:, at : at + 16], 1, 4)


def _five_bits(blocks: Bytes, at: int) -> Ints:
    return _four_bits(blocks, at + 4) | _fields(blocks[:, at : at + 4], 4, 1) << 4


LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32)
"""The sixteen values of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl)."""

Parts = tuple[Ints, Floats, Ints | None, Floats | None]  # unsigned values, scale, subscales, minimum


def _q4_0(b: Bytes) -> Parts:
    return _four_bits(b, 2), _half(b, 0), None, None


def _q4_1(b: Bytes) -> Parts:
    return _four_bits(b, 4), _half(b, 0), None, _half(b, 2)


def _q5_0(b: Bytes) -> Parts:
    return _five_bits(b, 2), _half(b, 0), None, None


def _q5_1(b: Bytes) -> Parts:
    return _five_bits(b, 4), _half(b, 0), None, _half(b, 2)


def _q8_0(b: Bytes) -> Parts:
    return (b[:, 2:] ^ 0x80).astype(np.int32), _half(b, 0), None, None


def _iq4_nl(b: Bytes) -> Parts:
    return LEVELS[_four_bits(b, 2)] + 128, _half(b, 0), None, None


def _iq4_xs(b: Bytes) -> Parts:
    scales = _fields(b[:, 4:8], 4, 4) | _fields(b[:, 2:4], 2, 2) << 4
    return LEVELS[_fields(b[:, 8:], 8, 4)] + 128, _half(b, 0) * (scales - 32).astype(f32), None, None


def _q2_k(b: Bytes) -> Parts:
    pairs = b[:, :16].astype(np.int32)
    return _fields(b[:, 16:80], 2, 2), _half(b, 80), pairs & 15, -_half(b, 82) * (pairs >> 4).astype(f32)


def _q3_k(b: Bytes) -> Parts:
    scales = _fields(b[:, 96:104], 1, 4) | _fields(b[:, 104:108], 1, 2) << 4
    return _fields(b[:, 32:96], 2, 2) | _fields(b[:, :32], 1, 1) << 2, _half(b, 108), scales - 32, None


def _six_bits(b: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of Q4_K and Q5_K, 8 each in 12 bytes."""
    low, other, shared = (b[:, at : at + 4].astype(np.int32) for at in (4, 8, 12))
    scales = np.hstack([low & 63, shared & 15 | low >> 6 << 4])
    minima = np.hstack([other & 63, shared >> 4 | other >> 6 << 4])
    return _half(b, 0) * scales.astype(f32), -(_half(b, 2) * minima.astype(f32))


def _q4_k(b: Bytes) -> Parts:
    scale, minimum = _six_bits(b)
    return _fields(b[:, 16:], 4, 4), scale, None, minimum


def _q5_k(b: Bytes) -> Parts:
    scale, minimum = _six_bits(b)
    return _fields(b[:, 48:], 4, 4) | _fields(b[:, 16:48], 1, 1) << 4, scale, None, minimum


def _q6_k(b: Bytes) -> Parts:
    values = _fields(b[:, :128], 2, 4) | _fields(b[:, 128:192], 2, 2) << 4
    return values, _half(b, 208), b[:, 192:208].view(np.int8).astype(np.int32), None


_PARTS: dict[str, Callable[[Bytes], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


def unpack(name: str, rows: Bytes) -> Weights:
    """Rows of the bytes of a quantized format, (R, row bytes)."""
    blocks = rows.reshape(-1, FORMATS[name].nbytes)
    count, per_block = len(rows), FORMATS[name].block // 32
    values, scale, subscales, minimum = _PARTS[name](blocks)
    return Weights(
        (values - ZEROS.get(name, 0)).reshape(count, -1, 2, 16),
        np.broadcast_to(scale, (len(blocks), per_block)).reshape(count, -1),
        None if subscales is None else subscales.reshape(count, -1, 2),
        None if minimum is None else minimum.reshape(count, -1, 1 if subscales is None else 2),
    )


def unpack_floats(name: str, rows: Bytes) -> Floats:
    """Rows of the bytes of F32, F16 or BF16."""
    if name == "BF16":
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(f32)
    return rows.view(np.float16 if name == "F16" else f32).astype(f32)


def _factors(w: Weights) -> tuple[Floats, Floats]:
    """What a unit of each half's values is worth, and what is added: (R, B, 2, 1)."""
    scale = w.scale[:, :, None] * (f32(1) if w.subscales is None else w.subscales.astype(f32))
    halves = (*w.scale.shape, 2)
    offset = f32(0) if w.minimum is None else w.minimum
    return np.broadcast_to(scale, halves)[..., None], np.broadcast_to(offset, halves)[..., None]


def dequantize(name: str, rows: Bytes) -> Floats:
    """(R, row bytes) of any format to (R, columns), rounded as ggml does: after the product, and after the sum."""
    if FORMATS[name].is_float:
        return unpack_floats(name, rows)
    w = unpack(name, rows)
    factor, offset = _factors(w)
    y = w.values.astype(f32) * factor
    return (y if w.minimum is None else y + offset).reshape(len(rows), -1)


# ---- products ----------------------------------------------------------------------------------------------------


def quantize(x: Floats, zero: int) -> Bytes:
    """(T, columns) to (T, B * LINE): the lines drawn in `layout`, the unused bytes 0."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=-1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest >= f32(2.0**-120), f32(127) / largest, f32(0))
    q = np.rint(blocks * inverse[..., None]).astype(np.int32)
    d = largest / f32(127)
    halves = q.reshape(*q.shape[:2], 2, 16).sum(axis=-1, dtype=np.int32)
    sums = np.concatenate([halves, halves.sum(axis=-1, dtype=np.int32, keepdims=True)], axis=-1)  # (T, B, 3)
    lines = np.zeros((*q.shape[:2], LINE), np.uint8)
    lines[..., :32] = q.astype(np.int8).view(np.uint8)
    lines[..., 32:36] = d[..., None].view(np.uint8)
    lines[..., 36:48] = (-zero * sums).astype(np.int32).view(np.uint8)
    lines[..., 48:60] = (d[..., None] * sums.astype(f32)).view(np.uint8)
    return lines.reshape(len(x), -1)


def matmul(name: str, rows: Bytes, lines: Bytes) -> Floats:
    """(R, row bytes) and `quantize`d (T, B * LINE) to (T, R): exact integers in a block, float32 block after block."""
    w, x = unpack(name, rows), lines.reshape(len(lines), -1, LINE)
    q = x[..., :32].view(np.int8).reshape(*x.shape[:2], 2, 16).astype(np.float64)
    halves = np.einsum("rbhe,tbhe->trbh", w.values.astype(np.float64), q)  # exact in float64
    total = halves.sum(axis=-1) if w.subscales is None else (halves * w.subscales).sum(axis=-1)
    d, sums = x[..., 32:36].copy().view(f32)[..., 0], x[..., 48:60].copy().view(f32)
    y = np.zeros((len(x), len(rows)), f32)
    for b in range(w.scale.shape[1]):
        y = fma(total[..., b].astype(f32), w.scale[:, b] * d[:, b, None], y)
        if w.minimum is not None:
            for half, at in enumerate((2,) if w.subscales is None else (0, 1)):
                y = fma(w.minimum[:, b, half], sums[:, b, at, None], y)
    return y


def matmul_float(name: str, rows: Bytes, x: Floats) -> Floats:
    """(R, row bytes) and (T, columns) to (T, R): LANES chains over the columns, folded at the end."""
    total = np.zeros((len(x), len(rows), LANES), f32)
    for w, v in zip(_lanes(unpack_floats(name, rows)), _lanes(x), strict=True):
        total = fma(v[:, None], w, total)
    return sum_lanes(total)


# ---- rows --------------------------------------------------------------------------------------------------------


def embed(name: str, rows: Bytes, scale: float) -> Floats:
    """(T, row bytes), a table's rows of the tokens, to (T, columns)."""
    if FORMATS[name].is_float:
        return unpack_floats(name, rows) * f32(scale)
    w = unpack(name, rows)
    return fma(w.values, *_factors(w)).reshape(len(rows), -1) * f32(scale)


def inverse_rms(x: Floats, epsilon: float) -> Floats:
    """(..., n) to (..., 1)."""
    squares = np.zeros((*x.shape[:-1], LANES), f32)
    for v in _lanes(x):
        squares = fma(v, v, squares)
    return (f32(1) / np.sqrt(sum_lanes(squares) / f32(x.shape[-1]) + f32(epsilon)))[..., None]


def norm(x: Floats, weight: Floats, epsilon: float, base: Floats | None = None) -> Floats:
    """(T, columns): rms_norm(x) * weight, and base if there is one."""
    y = x * inverse_rms(x, epsilon) * weight
    return y if base is None else base + y


def rotate(x: Floats, angles: Floats, scale: float, weight: Floats | None = None, epsilon: float = 0.0) -> Floats:
    """(T, H, D), with angles (T, D): the cosines of D/2 pairs, then the sines. Norm first, if there is a weight."""
    if weight is not None:
        x = x * inverse_rms(x, epsilon) * weight
    a, b = np.split(x, 2, axis=-1)
    cosine, sine = np.split(angles[:, None], 2, axis=-1)
    return np.concatenate([(a * cosine - b * sine) * f32(scale), (b * cosine + a * sine) * f32(scale)], axis=-1)


def gate(g: Floats, up: Floats) -> Floats:
    """gelu(g) * up."""
    return gelu(g) * up


def add(x: Floats, y: Floats) -> Floats:
    """The sum that replaces y."""
    return y + x


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)."""
    return f32(cap) * tanh(x * (f32(1) / f32(cap)))


# ---- attention ---------------------------------------------------------------------------------------------------

Cache = NDArray[np.float16] | Floats
Partial = tuple[Floats, Floats, Floats]  # maximum (H,), sum of weights (H,), weighted sum of values (H, D)


def append(k: Floats, v: Floats, k_cache: Cache, v_cache: Cache, sequences: list[int], positions: list[int]) -> None:
    """Rows (T, K, D) into k_cache (S, K, C / LANES, D, LANES) and v_cache (S, K, C, D), rounded to their type."""
    capacity = v_cache.shape[2]
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        block, lane = divmod(position % capacity, LANES)
        k_cache[sequence, :, block, :, lane] = k[row]
        v_cache[sequence, :, position % capacity] = v[row]


def _span(q: Floats, keys: Floats, values: Floats, visible: NDArray[np.bool_], cap: float) -> Partial:
    """(H, D) queries over the SPAN keys and values (H, SPAN, D) of which at least one is visible."""
    scores = np.zeros((len(q), SPAN), f32)
    for d in range(q.shape[1]):
        scores = fma(q[:, d, None], keys[:, :, d], scores)
    scores = np.where(visible, softcap(scores, cap) if cap else scores, f32(-np.inf))
    m = scores.max(axis=1)
    weights = exp(scores - m[:, None])
    total, out = np.zeros((len(q), LANES), f32), np.zeros(q.shape, f32)
    for w in _lanes(weights):
        total = total + w
    for key in np.flatnonzero(visible):
        out = fma(weights[:, key, None], values[:, key], out)
    return m, sum_lanes(total), out


def _fold(state: Partial | None, partial: Partial) -> Partial:
    """Both rescaled to the larger maximum."""
    if state is None:
        return partial
    top = np.maximum(state[0], partial[0])
    a, b = exp(state[0] - top), exp(partial[0] - top)
    return (
        top,
        fma(partial[1], b, state[1] * a),
        fma(partial[2], b[:, None], state[2] * a[:, None]),
    )


def _attend_row(q: Floats, k: Cache, v: Cache, position: int, window: int, cap: float) -> Floats:
    """(H, D) of one row, over one sequence's (K, C / LANES, D, LANES) and (K, C, D)."""
    capacity, low, state = v.shape[1], max(0, position - window + 1), None
    for start in range(low // SPAN * SPAN, position + 1, SPAN):
        at = start % capacity
        keys = k[:, at // LANES : (at + SPAN) // LANES].swapaxes(2, 3).reshape(len(k), SPAN, -1)
        heads = [np.repeat(a.astype(f32), len(q) // len(k), axis=0) for a in (keys, v[:, at : at + SPAN])]
        numbers = np.arange(start, start + SPAN)
        state = _fold(state, _span(q, *heads, (numbers >= low) & (numbers <= position), cap))
    assert state is not None
    return state[2] / state[1][:, None]


def attend(
    q: Floats, k_cache: Cache, v_cache: Cache, sequences: list[int], positions: list[int], window: int, cap: float
) -> Floats:
    """(T, H, D): span by span from position 0, folded in order. No soft-cap if cap is 0."""
    return np.stack(
        [
            _attend_row(q[row], k_cache[sequence], v_cache[sequence], position, window, cap)
            for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True))
        ]
    )
