"""Every kernel again in NumPy: slow, plain, and the definition of the kernels' results, bit for bit.

Knows no Numba, no address and no thread. What makes float32 sums equal to the last bit is their order, so the order
is part of each definition; it depends on LANES where a kernel adds across lanes. `fma` rounds once, as the CPU's does,
unless the instruction set has none (`generic`): then it rounds twice, as the kernels do there.

    T rows of activations   R rows of weights   B blocks of 32 columns   H heads   K key-value heads   D head's size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_gemma.formats import FORMATS

from ..isa import current
from ..layout import LANES, LINE, LOGIT_GROUP, SPAN, logit_groups
from ..operations import GELU, SILU
from .cache_types import Pages, Part, read, write
from .formats import Bytes, Floats, f32, factors, unpack, unpack_floats

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
    """Sum over the last axis, a power of two long: halves onto each other."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def _lanes(x: Floats, lanes: int = 16) -> Floats:
    """(..., n) to (n / lanes, ..., lanes): what a loop over vectors meets, in order."""
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, lanes), -2, 0)


# ---- functions ---------------------------------------------------------------------------------------------------

EXP_LOW, EXP_HIGH = f32(-88), f32(88.37626)


def _split(x: Floats) -> tuple[Floats, Floats]:
    """2^n, or 0 where n is -127, and e^r - 1 for x = n ln 2 + r."""
    nearest = f32(1.5 * 2**23)
    n = fma(x, f32(1.4426950408889634), nearest) - nearest
    r = fma(n, f32(-1.428606820309417e-06), fma(n, f32(-0.693145751953125), x))
    p = fma(r, f32(0.0013863744), f32(0.008367524))
    for coefficient in (0.041667238, 0.16666533, 0.5):
        p = fma(p, r, f32(coefficient))
    with np.errstate(invalid="ignore"):  # a NaN's power does not matter: r is NaN
        power = np.where(n < -126, f32(0), np.ldexp(f32(1), n.astype(np.int32)))
    return power, fma(p * r, r, r)


def exp(x: ArrayLike) -> Floats:
    """e^x; 0 below -87.7, constant above EXP_HIGH."""
    power, p = _split(np.clip(np.asarray(x, f32), EXP_LOW, EXP_HIGH))
    return fma(p, power, power)


def tanh(x: ArrayLike) -> Floats:
    """(e^2x - 1) / (e^2x + 1)."""
    x = np.asarray(x, f32)
    power, p = _split(np.clip(x + x, f32(-20), f32(20)))
    m = fma(p, power, power - f32(1))
    return m / (m + f32(2))


def gelu(x: ArrayLike) -> Floats:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    x = np.asarray(x, f32)
    u = f32(-2 * 0.7978845608028654) * fma(x * x * x, f32(0.044715), x)
    return np.asarray(x / (f32(1) + exp(u)))


def silu(x: ArrayLike) -> Floats:
    """x / (1 + e^-x)."""
    x = np.asarray(x, f32)
    return np.asarray(x / (f32(1) + exp(-x)))


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
    for w, v in zip(_lanes(unpack_floats(name, rows), LANES), _lanes(x, LANES), strict=True):
        total = fma(v[:, None], w, total)
    return sum_lanes(total)


# ---- rows --------------------------------------------------------------------------------------------------------


def embed(name: str, rows: Bytes, scale: float) -> Floats:
    """(T, row bytes), a table's rows of the tokens, to (T, columns)."""
    if FORMATS[name].is_float:
        return unpack_floats(name, rows) * f32(scale)
    w = unpack(name, rows)
    return fma(w.values, *factors(w)).reshape(len(rows), -1) * f32(scale)


def inverse_rms(x: Floats, epsilon: float) -> Floats:
    """(..., n) to (..., 1)."""
    squares = np.zeros((*x.shape[:-1], 16), f32)
    for v in _lanes(x):
        squares = fma(v, v, squares)
    root = np.sqrt(sum_lanes(squares) / f32(x.shape[-1]) + f32(epsilon))
    return np.asarray(f32(1) / root)[..., None]


def norm(x: Floats, weight: Floats, epsilon: float, base: Floats | None = None, factor: float = 1.0) -> Floats:
    """(T, columns): rms_norm(x) * weight; (base + that) * factor if there is a base."""
    y = x * inverse_rms(x, epsilon) * weight
    return y if base is None else (base + y) * f32(factor)


def head_norm(
    x: Floats, epsilon: float, weight: Floats | None = None, base: Floats | None = None, scale: float = 1.0
) -> Floats:
    """(T, H, D): (rms_norm(x) * weight + base) * scale, with weight (D,) and base like x, if there are any."""
    y = x * inverse_rms(x, epsilon)
    y = y if weight is None else y * weight
    return np.asarray((y if base is None else y + base) * f32(scale))


def rotate_neighbours(x: Floats, angles: Floats, scale: float) -> Floats:
    """`rotate`, but dimensions 2i and 2i + 1 are a pair, and angles are (T, 2 D): for each dimension the cosine of its
    pair, then the sine, of even dimensions negated."""
    cosine, sine = np.split(angles[:, None], 2, axis=-1)
    other = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
    return np.asarray((x * cosine + other * sine) * f32(scale))


def resize_heads(x: Floats, size: int) -> Floats:
    """(T, H, D) to (T, H, size): cut off, or zeros behind."""
    return np.pad(x[..., :size], ((0, 0), (0, 0), (0, max(0, size - x.shape[-1]))))


def rotate(x: Floats, angles: Floats, scale: float, weight: Floats | None = None, epsilon: float = 0.0) -> Floats:
    """(T, H, D), with angles (T, D): the cosines of D/2 pairs, then the sines. Norm first, if there is a weight."""
    if weight is not None:
        x = x * inverse_rms(x, epsilon) * weight
    a, b = np.split(x, 2, axis=-1)
    cosine, sine = np.split(angles[:, None], 2, axis=-1)
    return np.concatenate([(a * cosine - b * sine) * f32(scale), (b * cosine + a * sine) * f32(scale)], axis=-1)


def gate(g: Floats, up: Floats, activation: int = GELU) -> Floats:
    """gelu(g) * up, or with SiLU."""
    return (silu if activation == SILU else gelu)(g) * up


def add(x: Floats, y: Floats) -> Floats:
    """The sum that replaces y."""
    return y + x


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)."""
    return f32(cap) * tanh(x * (f32(1) / f32(cap)))


# ---- logits ------------------------------------------------------------------------------------------------------


def mask(x: Floats, masks: list[NDArray[np.uint32] | None]) -> Floats:
    """(T, V), -inf added where a row's mask has no bit: what is no number, or +inf, becomes NaN and is not hidden."""
    y = x.copy()
    for row, bits in zip(y, masks, strict=True):
        if bits is not None:
            allowed = np.unpackbits(bits.astype("<u4").view(np.uint8), bitorder="little")[: row.size]
            with np.errstate(invalid="ignore"):
                row[allowed == 0] += f32(-np.inf)
    return y


def group_maxima(x: Floats) -> Floats:
    """(T, V) to (T, groups): the largest of each LOGIT_GROUP neighbours, NaN where one is. Of zeros either sign."""
    missing = logit_groups(x.shape[1]) * LOGIT_GROUP - x.shape[1]
    padded = np.pad(x, ((0, 0), (0, missing)), constant_values=-np.inf)
    return np.asarray(padded.reshape(len(x), -1, LOGIT_GROUP).max(axis=2))


# ---- attention ---------------------------------------------------------------------------------------------------

Table = Sequence[int]
"""The page of each span of a sequence."""
Partial = tuple[Floats, Floats, Floats]  # maximum (H,), sum of weights (H,), weighted sum of values (H, D)


def append(k: Floats, v: Floats, pages: Pages, tables: Sequence[Table], positions: Sequence[int]) -> None:
    """Rows (T, K, D), rounded to the pages' type; `tables`: of each row."""
    for keys, values, table, position in zip(k, v, tables, positions, strict=True):
        write(pages, table[position // SPAN], position % SPAN, keys, values)


def _span(q: Floats, keys: Part, values: Part, visible: NDArray[np.bool_], cap: float) -> Partial:
    """(H, D) queries over the SPAN keys and values of as many heads, of which at least one is visible."""
    scores, run = np.zeros((len(q), SPAN), f32), q.shape[1] // keys.d.shape[2]
    for block in range(keys.d.shape[2]):
        sums = np.zeros_like(scores)
        for d in range(block * run, (block + 1) * run):
            sums = fma(q[:, d, None], keys.q[:, :, d], sums)
        scores = fma(sums, keys.d[:, :, block], scores)
    scores = np.where(visible, softcap(scores, cap) if cap else scores, f32(-np.inf))
    m = scores.max(axis=1)
    weights = exp(scores - m[:, None])
    total, out = np.zeros((len(q), 16), f32), np.zeros(q.shape, f32)
    for w in _lanes(weights):
        total = total + w
    for key in np.flatnonzero(visible):
        scaled = weights[:, key, None] * values.d[:, key]
        out = fma(scaled.repeat(q.shape[1] // scaled.shape[1], axis=1), values.q[:, key], out)
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


def _attend_row(q: Floats, pages: Pages, table: Table, low: int, high: int, cap: float) -> Floats:
    """(H, D) of one row that sees keys low..high."""
    state, group = None, len(q) // pages.shape[2]
    for number in range(low // SPAN, high // SPAN + 1):
        page, numbers = table[number], np.arange(number * SPAN, (number + 1) * SPAN)
        keys, values = (part.repeated(group) for part in read(pages[page : page + 1]))
        state = _fold(state, _span(q, keys, values, (numbers >= low) & (numbers <= high), cap))
    assert state is not None
    return state[2] / state[1][:, None]


def attend(
    q: Floats,
    pages: Pages,
    tables: Sequence[Table],
    positions: Sequence[int],
    window: int,
    cap: float,
    *,
    ahead: int = 0,
    lasts: Sequence[int] | None = None,
) -> Floats:
    """(T, H, D), `tables` of each row: span by span from position 0, folded in order. No soft-cap if cap is 0.

    ahead: so many keys behind its own a row sees, up to its sequence's last, `lasts`.
    """
    rows = zip(q, tables, positions, lasts or positions, strict=True)
    out = [
        _attend_row(row, pages, table, max(0, position - window + 1), min(position + ahead, last), cap)
        for row, table, position, last in rows
    ]
    return np.stack(out)
