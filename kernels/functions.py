"""exp, tanh and GELU on vectors. Straight float32 polynomials, the same bits wherever they are called from.

NaN stays NaN: the clamps keep their second operand then. Bounds (checked over the whole range by the tests): exp 2 ulp,
tanh 3 ulp, on results that are normal numbers.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.kernels.jit import inlined
from edge_gemma.kernels.simd import (
    bits_as_float,
    fma,
    maximum,
    minimum,
    select_less,
    splat,
    splat_int,
    to_float,
    to_int,
)

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # 15 bits: n * LN2_HIGH is exact for |n| < 2^9
LN2_LOW = 1.428606820309417e-06
EXP_LOW, EXP_HIGH = -87.33654, 88.37626  # results stay normal numbers between these


@inlined
def _split(x: Any) -> Any:
    """x = n ln 2 + r with |r| <= ln 2 / 2: the power 2^n, and (e^r - 1) by Taylor's series to r^7 (error 5e-9)."""
    n = to_int(x * splat(LOG2_E))
    k = to_float(n)
    r = fma(k, splat(-LN2_LOW), fma(k, splat(-LN2_HIGH), x))
    p = fma(r, splat(1.0 / 5040.0), splat(1.0 / 720.0))
    p = fma(p, r, splat(1.0 / 120.0))
    p = fma(p, r, splat(1.0 / 24.0))
    p = fma(p, r, splat(1.0 / 6.0))
    p = fma(p, r, splat(0.5))
    p = fma(p * r, r, r)
    return bits_as_float((n + splat_int(127)) << 23), p


@inlined
def exp(x: Any) -> Any:
    """e^x; exactly 0 below EXP_LOW, and constant above EXP_HIGH."""
    power, p = _split(minimum(splat(EXP_HIGH), maximum(splat(EXP_LOW), x)))
    return select_less(x, splat(EXP_LOW), splat(0.0), fma(p, power, power))


@inlined
def tanh(x: Any) -> Any:
    """(e^2x - 1) / (e^2x + 1), by e^2x - 1 without cancellation."""
    power, p = _split(minimum(splat(20.0), maximum(splat(-20.0), x + x)))
    m = fma(p, power, power - splat(1.0))
    return m / (m + splat(2.0))


@inlined
def softcap(x: Any, cap: Any, inverse: Any) -> Any:
    """cap * tanh(x / cap)."""
    return cap * tanh(x * inverse)


SQRT_2_OVER_PI = 0.7978845608028654


@inlined
def gelu(x: Any) -> Any:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x / (1 + e^-2u)."""
    u = splat(-2.0 * SQRT_2_OVER_PI) * fma(x * x * x, splat(0.044715), x)
    return x / (splat(1.0) + exp(u))
