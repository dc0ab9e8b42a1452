"""Scales for 16 groups of values at a time, by least squares. Knows no byte of a format.

A tile is `count` vectors of memory, lane = group: finite values x, and their weights w in the error  sum w (x - y)^2.
Weights are 0 or within 2^-60..8, so that products of two sums of them neither underflow nor overflow. Formats differ in
their levels q and in y: `scale * q`, or `scale * q + offset`. For a given rounding of x to levels the best scale (and
offset) has a closed form, so a search tries roundings: those of a row of starting scales, and then those that the
solution itself implies, which can only lower the error. In units of the starting scale with u = (x - offset) / scale,
r = u - q, the sums of w r q and w r are small where the fit is good, which keeps float32 precise enough.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

from ..simd.decorators import inlined
from .lanes import absolute, if_less, larger, load, nearest, smaller, splat, store_bytes

VECTOR = 64
"""Bytes of 16 float32."""
HUGE = 3.0e38

Levels = tuple[int, ...]
Cuts = tuple[tuple[float, ...], tuple[float, ...]]
"""Steps that the levels of a starting line cut off a group's range at its lower end, and at its upper one; what is
negative stands out of the range. Each at one end is tried with each at the other. Cuts at the lower end that differ by
a whole step give the same lines, so where the offset has few bits a row of less than one step keeps it small."""


def make_level(levels: Levels) -> Any:
    """A function: the nearest of `levels` (ascending) to every lane."""
    low, high = float(levels[0]), float(levels[-1])
    if not _evenly(levels):
        return _make_stairs(low, _bounds(levels), tuple(float(b - a) for a, b in pairwise(levels)))

    @inlined
    def linear(u: Any) -> Any:
        return nearest(smaller(larger(u, splat(low)), splat(high)))

    return linear


def _make_stairs(start: float, bounds: tuple[float, ...], heights: tuple[float, ...]) -> Any:
    """A function: `start`, and each height more above its bound. One function a stair: LLVM sees constants."""

    @inlined
    def ground(u: Any) -> Any:
        return splat(start)

    function = ground
    for bound, height in zip(bounds, heights, strict=True):
        function = _make_stair(function, bound, height)
    return function


def _make_stair(below: Any, bound: float, height: float) -> Any:
    @inlined
    def stair(u: Any) -> Any:
        return below(u) + if_less(splat(bound), u, splat(height), splat(0.0))

    return stair


def _bounds(levels: Levels) -> tuple[float, ...]:
    return tuple((a + b) / 2 for a, b in pairwise(levels))


@inlined
def finite(a: Any) -> Any:
    """a, and 0 where it is infinite, NaN or near to infinite."""
    return if_less(absolute(a), splat(HUGE), a, splat(0.0))


@inlined
def inverse(a: Any) -> Any:
    """1 / a, and 0 where that is not finite."""
    return finite(splat(1.0) / a)


@inlined
def ratio(a: Any, b: Any) -> Any:
    """a / b, and 0 unless b > 0."""
    return if_less(splat(0.0), b, a / b, splat(0.0))


def make_extremes(count: int) -> Any:
    """A function: the least and the greatest of a tile."""

    @inlined
    def extremes(x: Any) -> Any:
        low = high = load(x)
        for i in range(1, count):
            v = load(x + i * VECTOR)
            low, high = smaller(low, v), larger(high, v)
        return low, high

    return extremes


def make_error(count: int, level: Any) -> Any:
    """A function: the error of a tile with given scale and offset, as decoded."""

    @inlined
    def error(x: Any, w: Any, scale: Any, offset: Any) -> Any:
        inv, total = inverse(scale), splat(0.0)
        for i in range(count):
            v = load(x + i * VECTOR)
            e = v - (scale * level((v - offset) * inv) + offset)
            total = total + load(w + i * VECTOR) * e * e
        return total

    return error


def make_numbers(count: int, levels: Levels) -> Any:
    """A function: writes the number of each value's level, counted from 0, as bytes: 16 per vector of the tile."""
    steps = tuple(range(len(levels)))
    number = make_level(steps) if _evenly(levels) else _make_stairs(0.0, _bounds(levels), (1.0,) * (len(levels) - 1))
    low = float(levels[0]) if _evenly(levels) else 0.0

    @inlined
    def numbers(x: Any, scale: Any, offset: Any, out: Any) -> Any:
        inv = inverse(scale)
        for i in range(count):
            store_bytes(out + i * 16, number((load(x + i * VECTOR) - offset) * inv - splat(low)))

    return numbers


def _evenly(levels: Levels) -> bool:
    return levels == tuple(range(levels[0], levels[-1] + 1))


def make_scale_fit(count: int, level: Any, starts: tuple[float, ...], turns: int) -> Any:
    """A function: the best scale of y = scale * q. `starts` are levels that the peak of a group is put to."""
    extremes = make_extremes(count)
    tries = len(starts)

    @inlined
    def attempt(x: Any, w: Any, scale: Any) -> Any:
        """The best scale for the rounding that `scale` gives, and its error.

        With scale * (1 + a) the error is  scale^2 sum w (r - a q)^2, which is least where its derivative in a is 0:
        a = sum wrq / sum wqq; what is left then is  sum wrr - a sum wrq.
        """
        inv = inverse(scale)
        sum_wrr = sum_wrq = sum_wqq = splat(0.0)
        for i in range(count):
            u = load(x + i * VECTOR) * inv
            q = level(u)
            r = u - q
            wr, wq = load(w + i * VECTOR) * r, load(w + i * VECTOR) * q
            sum_wrr, sum_wrq, sum_wqq = sum_wrr + wr * r, sum_wrq + wr * q, sum_wqq + wq * q
        a = ratio(sum_wrq, sum_wqq)
        return scale + a * scale, (sum_wrr - a * sum_wrq) * scale * scale

    @inlined
    def fit(x: Any, w: Any) -> Any:
        low, high = extremes(x)
        peak = if_less(splat(0.0) - low, high, high, low)
        best, error = splat(0.0), splat(HUGE)
        for k in range(tries):
            scale, e = attempt(x, w, peak * splat(1 / starts[k]))
            best, error = if_less(e, error, scale, best), if_less(e, error, e, error)
        for _ in range(turns):
            scale, e = attempt(x, w, best)
            best, error = if_less(e, error, scale, best), if_less(e, error, e, error)
        return best

    return fit


def make_line_fit(count: int, level: Any, cuts: Cuts, top: int, turns: int, *, below_zero: bool) -> Any:
    """A function: best scale >= 0 and offset of y = scale * q + offset, for levels 0..top, the offset perhaps <= 0."""
    extremes = make_extremes(count)
    skips, steps = zip(*((low, top + low + high) for low, high in product(*cuts)), strict=True)
    tries = len(steps)
    ceiling = 0.0 if below_zero else HUGE

    @inlined
    def attempt(x: Any, w: Any, scale: Any, offset: Any) -> Any:
        """The best line for the rounding that `scale` and `offset` give, and its error.

        With scale * (1 + a) and offset + b * scale the error is  scale^2 sum w (r - a q - b)^2. It is least where both
        derivatives are 0, which are the normal equations

            a sum wqq + b sum wq = sum wrq
            a sum wq  + b sum w  = sum wr

        solved by Cramer's rule. Without a solution (all levels are one) a and b are 0.
        """
        inv = inverse(scale)
        sum_wrr = sum_wrq = sum_wqq = sum_wr = sum_wq = sum_w = splat(0.0)
        for i in range(count):
            u = (load(x + i * VECTOR) - offset) * inv
            q = level(u)
            r, v = u - q, load(w + i * VECTOR)
            wr, wq = v * r, v * q
            sum_wrr, sum_wrq, sum_wqq = sum_wrr + wr * r, sum_wrq + wr * q, sum_wqq + wq * q
            sum_wr, sum_wq, sum_w = sum_wr + wr, sum_wq + wq, sum_w + v
        det = sum_wqq * sum_w - sum_wq * sum_wq
        a = ratio(sum_wrq * sum_w - sum_wq * sum_wr, det)
        b = ratio(sum_wqq * sum_wr - sum_wq * sum_wrq, det)
        limit = (splat(ceiling) - offset) * inv  # where the offset would rise above it, the scale is fitted alone
        a = if_less(limit, b, ratio(sum_wrq - limit * sum_wq, sum_wqq), a)
        b = if_less(limit, b, limit, b)
        of_scale = a * (a * sum_wqq + (b + b) * sum_wq - (sum_wrq + sum_wrq))
        e = sum_wrr + of_scale + b * (b * sum_w - (sum_wr + sum_wr))
        return scale + a * scale, offset + b * scale, e * scale * scale

    @inlined
    def better(x: Any, w: Any, scale: Any, offset: Any, best: Any, at: Any, error: Any) -> Any:
        s, o, e = attempt(x, w, scale, offset)
        return if_less(e, error, s, best), if_less(e, error, o, at), if_less(e, error, e, error)

    @inlined
    def fit(x: Any, w: Any) -> Any:
        low, high = extremes(x)
        if below_zero:
            low = smaller(low, splat(0.0))
        width = high - low
        best, at, error = splat(0.0), low, splat(HUGE)
        for k in range(tries):
            scale = width * splat(1 / steps[k])
            best, at, error = better(x, w, scale, low + scale * splat(skips[k]), best, at, error)
        for _ in range(turns):
            best, at, error = better(x, w, best, at, best, at, error)
        return best, at

    return fit


def starts(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` numbers from `low` to `high`."""
    return tuple(low + (high - low) * k / max(count - 1, 1) for k in range(count))


def both_signs(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Each number and its negative: the end with one level more may face either way."""
    return (*numbers, *(-n for n in numbers))
