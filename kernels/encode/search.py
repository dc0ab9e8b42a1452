"""Scales as a format can store them, near the best ones. Knows no byte of a format.

Plain blocks store a float16 scale (and offset) per group. In 256-blocks, groups store small integers and share float16
factors; integers and levels are then searched again for the factors as rounded, and the factors fitted again to them,
so that each rounding makes up for those before it. What has the least error after all rounding is kept.
"""

from __future__ import annotations

from typing import Any

from ..simd.decorators import inlined
from .fit import HUGE, VECTOR, inverse, ratio
from .lanes import (
    absolute,
    as_half,
    if_less,
    larger,
    load,
    make_group_larger,
    make_group_sum,
    nearest,
    next_half,
    smaller,
    splat,
)

LARGEST_HALF = 65504.0


@inlined
def finite_half(a: Any) -> Any:
    """Rounded to float16, at most to its largest value: what is fitted may lie a little beyond what the values need."""
    return as_half(smaller(larger(a, splat(-LARGEST_HALF)), splat(LARGEST_HALF)))


def make_half_scale(error: Any, reach: int) -> Any:
    """A function: the best float16 scale within `reach` values of the rounded one; the offset stays."""

    @inlined
    def half_scale(x: Any, w: Any, scale: Any, offset: Any) -> Any:
        rounded = finite_half(scale)
        best, least = rounded, error(x, w, rounded, offset)
        for k in range(1, reach + 1):
            for sign in (-1, 1):
                s = next_half(rounded, sign * k)
                e = error(x, w, s, offset)
                best, least = if_less(e, least, s, best), if_less(e, least, e, least)
        return best

    return half_scale


def make_offset_fit(count: int, level: Any) -> Any:
    """A function: the best offset for the levels that scale and offset give."""

    @inlined
    def offset_fit(x: Any, w: Any, scale: Any, offset: Any) -> Any:
        inv, total, weight = inverse(scale), splat(0.0), splat(0.0)
        for i in range(count):
            v, m = load(x + i * VECTOR), load(w + i * VECTOR)
            y = scale * level((v - offset) * inv) + offset
            total, weight = total + m * (v - y), weight + m
        return offset + ratio(total, weight)

    return offset_fit


@inlined
def _limited(a: Any, low: Any, high: Any) -> Any:
    return nearest(smaller(larger(a, splat(low)), splat(high)))


@inlined
def _factor(a: Any) -> Any:
    """A float16 that is not much smaller than `a`: among the least of float16, rounding can lose half, or all."""
    rounded = finite_half(a)
    return if_less(absolute(rounded), absolute(a) * splat(0.99), next_half(rounded, 1), rounded)


def make_shared_scale(
    count: int, level: Any, error: Any, group: int, size: int, tops: tuple[float, ...], reach: int, turns: int
) -> Any:
    """A function: float16 factor and integers -size..size-1 for y = factor * integer * q, from the ideal scales.

    `tops` are integers (with sign) that the largest scale of a group of lanes is put to.
    """
    group_sum, group_larger = make_group_sum(group), make_group_larger(group)
    low, high, tries = float(-size), float(size - 1), len(tops)

    @inlined
    def search(x: Any, w: Any, factor: Any, centre: Any) -> Any:
        """The best integers near `centre`, and their error."""
        best, least = _limited(centre, low, high), splat(HUGE)
        middle = best
        for k in range(-reach, reach + 1):
            n = _limited(middle + splat(float(k)), low, high)
            e = error(x, w, factor * n, splat(0.0))
            best, least = if_less(e, least, n, best), if_less(e, least, e, least)
        return best, least

    @inlined
    def refit(x: Any, w: Any, factor: Any, n: Any) -> Any:
        """The best factor for these integers and the levels they give."""
        scale = factor * n
        inv, sum_wrq, sum_wqq = inverse(scale), splat(0.0), splat(0.0)
        for i in range(count):
            v = load(x + i * VECTOR)
            q = level(v * inv)
            wq = load(w + i * VECTOR) * q
            sum_wrq, sum_wqq = sum_wrq + wq * (v - scale * q), sum_wqq + wq * q
        return finite_half(factor + ratio(group_sum(sum_wrq * n), group_sum(sum_wqq * n * n)))

    @inlined
    def shared(x: Any, w: Any, ideal: Any) -> Any:
        largest = group_larger(absolute(ideal))
        best, ints, least = splat(0.0), splat(0.0), splat(HUGE)
        for k in range(tries):
            factor = _factor(largest * splat(1 / tops[k]))
            n, e = search(x, w, factor, ideal * inverse(factor))
            e = group_sum(e)
            best, ints = if_less(e, least, factor, best), if_less(e, least, n, ints)
            least = if_less(e, least, e, least)
        for _ in range(turns):
            factor = refit(x, w, best, ints)
            n, e = search(x, w, factor, ints)
            e = group_sum(e)
            best, ints = if_less(e, least, factor, best), if_less(e, least, n, ints)
            least = if_less(e, least, e, least)
        return best, ints

    return shared


def make_shared_line(
    count: int, level: Any, error: Any, group: int, size: int, tops: tuple[float, ...], reach: int, turns: int
) -> Any:
    """A function: float16 factors and integers 0..size for y = factor * n * q - low_factor * m, n and m of a lane.

    for each top: factors that put the largest scale and the deepest offset of a group of lanes to it
        n, m = the best integers within `reach` of the ideal ones
    for each turn: factors fitted to the best n and m, then n and m again
    keep what has the least error over the group
    """
    group_sum, group_larger = make_group_sum(group), make_group_larger(group)
    high, tries = float(size), len(tops)

    @inlined
    def search(x: Any, w: Any, factor: Any, low_factor: Any, centre: Any, low_centre: Any) -> Any:
        n0, m0 = _limited(centre, 0.0, high), _limited(low_centre, 0.0, high)
        ints, lows, least = n0, m0, splat(HUGE)
        for j in range(-reach, reach + 1):
            for k in range(-reach, reach + 1):
                n, m = _limited(n0 + splat(float(j)), 0.0, high), _limited(m0 + splat(float(k)), 0.0, high)
                e = error(x, w, factor * n, splat(0.0) - low_factor * m)
                ints, lows = if_less(e, least, n, ints), if_less(e, least, m, lows)
                least = if_less(e, least, e, least)
        return ints, lows, least

    @inlined
    def refit(x: Any, w: Any, factor: Any, low_factor: Any, n: Any, m: Any) -> Any:
        """The best factors for these integers and the levels they give.

        With factor + f and low_factor - g, and r = x - y as it is, the error is  sum w (r - f n q - g m)^2  over all
        values of a group of lanes, least where

            f sum wqq n^2 + g sum wq n m = sum wrq n
            f sum wq n m  + g sum w m^2  = sum wr m

        Where that has no solution, the levels keep their offsets: f = sum wrq n / sum wqq n^2.
        """
        scale, offset = factor * n, splat(0.0) - low_factor * m
        inv = inverse(scale)
        sum_wrq = sum_wqq = sum_wr = sum_wq = sum_w = splat(0.0)
        for i in range(count):
            v, weight = load(x + i * VECTOR), load(w + i * VECTOR)
            q = level((v - offset) * inv)
            r, wq = v - (scale * q + offset), weight * q
            sum_wrq, sum_wqq, sum_wq = sum_wrq + wq * r, sum_wqq + wq * q, sum_wq + wq
            sum_wr, sum_w = sum_wr + weight * r, sum_w + weight
        a, b, c = group_sum(sum_wqq * n * n), group_sum(sum_wq * n * m), group_sum(sum_w * m * m)
        u, v = group_sum(sum_wrq * n), group_sum(sum_wr * m)
        det = a * c - b * b
        both = if_less(splat(0.0), det, splat(1.0), splat(0.0))
        more = if_less(splat(0.0), both, ratio(u * c - b * v, det), ratio(u, a))
        less = ratio(a * v - b * u, det)
        return finite_half(larger(factor + more, splat(0.0))), finite_half(larger(low_factor - less, splat(0.0)))

    @inlined
    def shared(x: Any, w: Any, ideal: Any, offset: Any) -> Any:
        depth = splat(0.0) - offset
        largest, deepest = group_larger(ideal), group_larger(depth)
        best = low_best = ints = lows = splat(0.0)
        least = splat(HUGE)
        for k in range(tries):
            f, g = _factor(largest * splat(1 / tops[k])), _factor(deepest * splat(1 / tops[k]))
            n, m, e = search(x, w, f, g, ideal * inverse(f), depth * inverse(g))
            e = group_sum(e)
            best, low_best = if_less(e, least, f, best), if_less(e, least, g, low_best)
            ints, lows = if_less(e, least, n, ints), if_less(e, least, m, lows)
            least = if_less(e, least, e, least)
        for _ in range(turns):
            f, g = refit(x, w, best, low_best, ints, lows)
            n, m, e = search(x, w, f, g, ints, lows)
            e = group_sum(e)
            best, low_best = if_less(e, least, f, best), if_less(e, least, g, low_best)
            ints, lows = if_less(e, least, n, ints), if_less(e, least, m, lows)
            least = if_less(e, least, e, least)
        return best, low_best, ints, lows

    return shared
