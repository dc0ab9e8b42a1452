"""The block formats as traits: how 32 weights of `LANES` rows are read from the file's bytes into registers.

Knows no shape and no loop. A format is a singleton with a few facts and at most four operations, each for the 32-block
`i` of the file block that starts at address `at` in the first of LANES rows, `stride` bytes apart. Lane = row:

    weights(fmt, at, stride, i)    8 vectors of bytes: lane r of vector k has the unsigned weights 4k..4k+3 of row r
    scale(fmt, at, stride, i)      F: what one unit of the block's integer sum is worth
    subscales(fmt, at, stride, i)  2 x I: integer factors of the sums of weights 0..15 and 16..31  (fmt.subs == 2)
    minimum(fmt, at, stride, i)    2 x F: what is added per unit of the sum of inputs 0..15 and 16..31  (fmt.mins)

A weight is  scale * subscale * (unsigned - zero) + minimum; weights of 8 bits are signed where their zero is 0, on
AVX2 and AArch64. Sources: ggml's block structs (ggml-common.h) and the dequantizers of the gguf package, which the
tests hold these against.
"""

from __future__ import annotations

from .gridded import GRIDDED
from .levels import IQ4_VALUES, LEVELS
from .plain import PLAIN
from .super_blocks import SUPER_BLOCKS
from .traits import IntFormat, minimum, scale, subscales, weights

__all__ = ["INT_FORMATS", "IQ4_VALUES", "IntFormat", "minimum", "scale", "subscales", "weights"]

INT_FORMATS: dict[str, IntFormat] = {fmt.name: fmt for fmt in (*PLAIN, *LEVELS, *SUPER_BLOCKS, *GRIDDED)}
"""The formats whose products with int8 activations are exact integers."""
