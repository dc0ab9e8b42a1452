"""The operations on heads of float32 rows: norms, rotation, heads of another size. Know no model and no attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..operations import HEAD_NORM, RESIZE_HEADS, ROTATE, STEP_ROWS
from ..simd.atomics import real, word
from ..simd.decorators import inlined
from ..simd.vocabulary import LANES, load, load_scalar, splat, store, store_scalar, swap_pairs
from .elementwise import inverse_rms
from .work_sharing import parallel_for

_HEAD_NORM, _ROTATE, _RESIZE = HEAD_NORM.slots, ROTATE.slots, RESIZE_HEADS.slots
_VECTOR = 4 * LANES


def _heads(heads: int) -> Any:
    """Work items of an operation: heads; `heads` is the word that says how many a row has."""
    return inlined(lambda op, step: word(step, STEP_ROWS) * word(op, heads))


@inlined
def head_norm(op: Any, step: Any, _thread: Any, item: Any) -> None:
    """y = (rms_norm(x) * weight + base) * scale of a head, `head_dim` neighbours; all heads have the same weight."""
    size, row, head = (
        word(op, _HEAD_NORM.head_dim),
        item // word(op, _HEAD_NORM.heads),
        item % word(op, _HEAD_NORM.heads),
    )
    weight, base, at = word(op, _HEAD_NORM.weight), word(op, _HEAD_NORM.base), 4 * size * head
    x = word(op, _HEAD_NORM.x) + row * word(op, _HEAD_NORM.x_stride) + at
    y = word(op, _HEAD_NORM.y) + row * word(op, _HEAD_NORM.y_stride) + at
    inverse, scale = splat(inverse_rms(x, size, real(op, _HEAD_NORM.epsilon))), splat(real(op, _HEAD_NORM.scale))
    base_row = base + row * word(op, _HEAD_NORM.base_stride) + at
    for c in range(0, 4 * size, _VECTOR):
        v = load(x + c) * inverse
        if weight != 0:
            v = v * load(weight + c)
        if base != 0:
            v = v + load(base_row + c)
        store(y + c, v * scale)


# ---- rotation ----------------------------------------------------------------------------------------------------


@inlined
def _norm_head(x: Any, size: Any, norm: Any, epsilon: Any) -> None:
    inverse = splat(inverse_rms(x, size, epsilon))
    for c in range(0, 4 * size, _VECTOR):
        store(x + c, load(x + c) * inverse * load(norm + c))


@inlined
def _rotate_halves(x: Any, size: Any, cosines: Any, scale: Any) -> None:
    """The pairs (i, i + size/2). arXiv:2104.09864."""
    half = 2 * size  # bytes
    for c in range(0, half, _VECTOR):
        a, b = load(x + c), load(x + half + c)
        cosine, sine = load(cosines + c), load(cosines + half + c)
        store(x + c, (a * cosine - b * sine) * scale)
        store(x + half + c, (b * cosine + a * sine) * scale)


@inlined
def _rotate_neighbours(x: Any, size: Any, cosines: Any, scale: Any) -> None:
    """The pairs (2i, 2i + 1): a cos - b sin, b cos + a sin; the sines that meet b are stored negated."""
    sines = cosines + 4 * size
    for c in range(0, 4 * size, _VECTOR):
        v = load(x + c)
        store(x + c, (v * load(cosines + c) + swap_pairs(v) * load(sines + c)) * scale)


def make_rotate(turn: Any, angles_per_dim: int) -> Any:
    """A head of queries or keys in place: norm unless null, rotation, scale. `angles` names the step's word, one of its
    STEP_ANGLES, whose rows have so many floats for each dimension."""

    @inlined
    def rotate(op: Any, step: Any, _thread: Any, item: Any) -> None:
        X, X_STRIDE, HEADS, HEAD_DIM, NORM_WEIGHT, EPSILON, SCALE, ANGLES = _ROTATE
        size, row, head = word(op, HEAD_DIM), item // word(op, HEADS), item % word(op, HEADS)
        x = word(op, X) + row * word(op, X_STRIDE) + 4 * size * head
        if word(op, NORM_WEIGHT) != 0:
            _norm_head(x, size, word(op, NORM_WEIGHT), real(op, EPSILON))
        turn(x, size, word(step, word(op, ANGLES)) + row * 4 * size * angles_per_dim, splat(real(op, SCALE)))

    return parallel_for(_heads(_ROTATE.heads), rotate)


@inlined
def resize_heads(op: Any, _step: Any, _thread: Any, item: Any) -> None:
    """A head of y: as much of x's as there is room for, then zeros. Reads and writes nothing beside the two."""
    size, y_size, heads = word(op, _RESIZE.head_dim), word(op, _RESIZE.y_head_dim), word(op, _RESIZE.heads)
    row, head = item // heads, item % heads
    x = word(op, _RESIZE.x) + row * word(op, _RESIZE.x_stride) + 4 * size * head
    y = word(op, _RESIZE.y) + row * word(op, _RESIZE.y_stride) + 4 * y_size * head
    end, d = min(size, y_size), 0
    while d + LANES <= end:
        store(y + 4 * d, load(x + 4 * d))
        d += LANES
    while d < end:
        store_scalar(y + 4 * d, load_scalar(x + 4 * d))
        d += 1
    while d < y_size:
        store_scalar(y + 4 * d, np.float32(0.0))
        d += 1


def kernels() -> dict[str, Any]:
    """The functions of this module to compile, by name."""
    return {
        "head_norm": parallel_for(_heads(_HEAD_NORM.heads), head_norm),
        "rotate": make_rotate(_rotate_halves, 1),
        "rotate_neighbours": make_rotate(_rotate_neighbours, 2),
        "resize_heads": parallel_for(_heads(_RESIZE.heads), resize_heads),
    }
