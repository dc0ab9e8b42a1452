"""exp, tanh, GELU and SiLU on vectors. Straight float32 polynomials, the same bits wherever they are called from.

NaN stays NaN: the clamps keep their second operand then. Bounds (checked over the whole range by the tests): exp 2 ulp,
tanh 3 ulp, on results that are normal numbers.
"""

from __future__ import annotations

from typing import Any

from ..operations import SILU
from .decorators import inlined
from .vocabulary import bits_as_float, bits_as_int, fma, maximum, minimum, splat, splat_int

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # 15 bits: n * LN2_HIGH is exact for |n| < 2^9
LN2_LOW = 1.428606820309417e-06
EXP_LOW, EXP_HIGH = -88.0, 88.37626  # 2^n is 0, and the largest power of two, at these
NEAREST = 12582912.0  # 1.5 * 2^23: what is added to it is rounded to an integer, in the low bits of the sum
EXP_C2, EXP_C3, EXP_C4, EXP_C5, EXP_C6 = 0.5, 0.16666533, 0.041667238, 0.008367524, 0.0013863744
"""e^r = 1 + r + C2 r^2 + ..., the least largest error on |r| <= ln 2 / 2: 4e-9."""


@inlined
def _split(x: Any) -> Any:
    """x = n ln 2 + r with |r| <= ln 2 / 2: the power 2^n (0 where n is -127), and e^r - 1."""
    shifted = fma(x, splat(LOG2_E), splat(NEAREST))
    n = shifted - splat(NEAREST)
    r = fma(n, splat(-LN2_LOW), fma(n, splat(-LN2_HIGH), x))
    p = fma(r, splat(EXP_C6), splat(EXP_C5))
    p = fma(p, r, splat(EXP_C4))
    p = fma(p, r, splat(EXP_C3))
    p = fma(p, r, splat(EXP_C2))
    p = fma(p * r, r, r)
    return bits_as_float((bits_as_int(shifted) << 23) + splat_int(127 << 23)), p


@inlined
def exp(x: Any) -> Any:
    """e^x; exactly 0 below -87.7, where results stop being normal numbers, and constant above EXP_HIGH."""
    power, p = _split(minimum(splat(EXP_HIGH), maximum(splat(EXP_LOW), x)))
    return fma(p, power, power)


@inlined
def _tanh_of_half(x: Any) -> Any:
    """(e^x - 1) / (e^x + 1), by e^x - 1 without cancellation."""
    power, p = _split(minimum(splat(20.0), maximum(splat(-20.0), x)))
    m = fma(p, power, power - splat(1.0))
    return m / (m + splat(2.0))


@inlined
def tanh(x: Any) -> Any:
    """See `_tanh_of_half`."""
    return _tanh_of_half(x + x)


@inlined
def softcap(x: Any, cap: Any, inverse: Any) -> Any:
    """cap * tanh(x / cap)."""
    return cap * _tanh_of_half(x * (inverse + inverse))


SQRT_2_OVER_PI = 0.7978845608028654


@inlined
def gelu(x: Any) -> Any:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x / (1 + e^-2u)."""
    u = splat(-2.0 * SQRT_2_OVER_PI) * fma(x * x * x, splat(0.044715), x)
    return x / (splat(1.0) + exp(u))


@inlined
def silu(x: Any) -> Any:
    """x / (1 + e^-x)."""
    return x / (splat(1.0) + exp(splat(-1.0) * x))


@inlined
def activated(x: Any, activation: Any) -> Any:
    """The function that `operations` calls `activation`, of x."""
    return silu(x) if activation == SILU else gelu(x)
