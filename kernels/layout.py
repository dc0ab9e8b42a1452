"""Memory layouts that the kernels share with those who allocate for them: plain numbers.

Knows no Numba: a process whose kernels are cached never imports it.
"""

from __future__ import annotations

from .isa import current

LANES = current().lanes
VECTOR = 4 * LANES
"""Bytes of a vector register as the kernels use it."""
SUMS = 16 // LANES
"""Vectors that hold 16 partial sums: as many as a norm and a softmax have on every instruction set, for equal bits."""

# ---- int8 activations: one block of 32 values is one cache line --------------------------------------------------
#
#     | 32 x int8 q | f32 d | i32 z0 | i32 z1 | i32 z | f32 s0 | f32 s1 | f32 s | 4 B unused |
#       0             32      36       40       44      48       52       56
#
# value = d * q, with d = max|x| / 127 and q rounded to nearest even. z0, z1 are -zero times the sums of q 0..15 and
# 16..31, z their sum: integer sums of unsigned weights start from them, so the weights' zero costs nothing.
# s0, s1, s are d times the sums of q, for formats with a minimum.

LINE = 64
D, Z0, Z1, Z, S0, S1, S = 32, 36, 40, 44, 48, 52, 56

WIDE_ZERO = 0 if current().dot in ("vpmaddubsw", "sdot") else 128
"""What makes weights of 8 bits unsigned; AVX2 and AArch64 multiply them as they are, signed."""

ZEROS = {
    "Q4_0": 8,
    "Q5_0": 16,
    "Q3_K": 4,
    "Q6_K": 32,
    "Q8_0": WIDE_ZERO,
    "IQ4_NL": WIDE_ZERO,
    "IQ4_XS": WIDE_ZERO,
    "IQ3_XXS": 62,
    "IQ3_S": 15,
    "IQ2_XXS": 43,
    "IQ2_XS": 43,
    "IQ2_S": 43,
    "IQ1_S": 9,
    "IQ1_M": 9,
    "MXFP4": 12,
}
"""What is subtracted from the bytes of weights of a format; 0 for the others."""


def activation_bytes(columns: int) -> int:
    """A quantized row of activations."""
    return columns // 32 * LINE


# ---- rows --------------------------------------------------------------------------------------------------------

ITEM_COLUMNS = 512
"""Columns of a work item where a row can be cut."""


def row_scratch(columns: int) -> int:
    """Bytes a thread needs for a row of float32 that only its int8 blocks are wanted of."""
    return 4 * max(columns, ITEM_COLUMNS)


# ---- logits ------------------------------------------------------------------------------------------------------

LOGIT_GROUP = 64
"""Neighbouring logits whose maximum a sampler is given: of 262,144 it then looks at 4,096 maxima and at the logits of
as many groups as it wants tokens. A group is four cache lines; tokens in it are in order."""


def logit_groups(columns: int) -> int:
    """Groups of a row; the last one may be shorter."""
    return -(-columns // LOGIT_GROUP)


# ---- products of several rows ------------------------------------------------------------------------------------

PANEL = 2
"""Tiles of LANES rows of weights in a panel: each activation loaded serves two products."""
PANELS = 2
"""Panels that a thread claims at a time: they share each stretch of activations in its second-level cache."""
GATED_TILES = max(PANEL, 32 // LANES)
"""Tiles of a gate's matrix that a thread claims at a time, with as many of its partner: whole 32-blocks of results."""
STRETCH = 512
"""Columns unpacked at a time: the panel fits the first-level cache beside the activations."""
PANEL_VECTORS = 13
"""At most, for a 32-block of LANES rows: 8 of weights, a scale, 2 integer scales, 2 minima."""


def matmul_scratch(rows: int) -> int:
    """Bytes a thread needs for a step of `rows` rows: one panel, the partial sums of all it has claimed, and a row of
    gated results."""
    tiles = max(PANELS * PANEL, 2 * GATED_TILES)
    return PANEL * (STRETCH // 32) * PANEL_VECTORS * VECTOR + rows * tiles * VECTOR + GATED_TILES * VECTOR


# ---- experts -----------------------------------------------------------------------------------------------------
# A step's pairs (row, choice), grouped by expert and in the order of rows in each group, as int64 words:
#
#     groups    | G, experts that were chosen | G x (expert, its first pair) | -, number of pairs | E counts |
#     rows      the row of each pair in this order
#     places    where in this order choice j of row t is, at t * choices + j

GATHERED = STRETCH // 32 * LINE + LINE
"""Bytes from a row's stretch of int8 blocks to the next one's where rows of one expert are put together: an odd number
of cache lines, see `graph.program`."""


def group_words(experts: int) -> int:
    """Words of `groups`."""
    return 1 + 2 * (experts + 1) + experts


def address_bytes(rows: int) -> int:
    """The addresses of so many rows, in whole cache lines."""
    return -(-8 * rows // LINE) * LINE


def expert_scratch(rows: int) -> int:
    """Bytes a thread needs for a step of `rows` rows: their addresses, what a product needs, and their stretches."""
    return address_bytes(rows) + matmul_scratch(rows) + rows * GATHERED


# ---- attention ---------------------------------------------------------------------------------------------------

QUERY_ROWS = 32
"""Rows of one tile of queries."""
QUERY_HEADS = 2
"""Heads of a tile, of those that share keys."""
QUERIES = 16
"""Queries of a tile that meet a span together."""
SPAN = 256
"""Keys of one partial result, aligned to positions; part of the definition of attention's result. A page holds the keys
and values of one span and layer:

    | keys of head 0 | keys of head 1 | ... | values of head 0 | values of head 1 | ... |
"""


CACHE_BLOCK = 32
"""Dimensions of a key or of a value that are written at a time, and share a scale if there is one."""
CACHE_BLOCK_BYTES = {"f16": 64, "f32": 128, "q8_0": 34}
"""Their bytes, with the scale, by the type of the cache."""


def whole_head(head_dim: int) -> int:
    """Dimensions of a head as it is rotated, kept and attended to: behind its own, zeros up to whole CACHE_BLOCKs."""
    return -(-head_dim // CACHE_BLOCK) * CACHE_BLOCK


def head_bytes(head_dim: int, kv_type: str) -> int:
    """Keys, or values, of SPAN positions of one head."""
    return SPAN * head_dim * CACHE_BLOCK_BYTES[kv_type] // CACHE_BLOCK


def page_bytes(kv_heads: int, head_dim: int, kv_type: str) -> int:
    """Keys and values of SPAN positions of one layer."""
    return 2 * kv_heads * head_bytes(head_dim, kv_type)


VALUE_KEYS = 64
"""Keys whose values are added at a time."""
SCALED_WEIGHTS = 8 * 4 * (VALUE_KEYS + LANES)
"""Bytes for 8 rows of weights of so many keys, wherever they begin in a vector, times the scales of their values."""


def most_spans(positions: int) -> int:
    """Spans that so many neighbouring positions can touch, wherever they begin."""
    return (positions + SPAN - 2) // SPAN + 1


def partial_result_bytes(head_dim: int) -> int:
    """A partial result | m | l | unused up to LANES floats | o: head_dim floats |."""
    return VECTOR + 4 * head_dim


def attention_scratch(head_dim: int, group: int) -> int:
    """Bytes a thread needs: queries and states of a tile, scores and partial results of those that meet a span, and
    scaled weights.

    A single row needs scores, for `group` queries per key head, and scaled weights alone.
    """
    result = partial_result_bytes(head_dim)
    tile = 2 * QUERY_ROWS * QUERY_HEADS * result + QUERIES * (4 * SPAN + result)
    return max(tile, group * 4 * SPAN) + SCALED_WEIGHTS


def partial_bytes(heads: int, head_dim: int, spans: int) -> int:
    """Partial results of one row over `spans` spans."""
    return heads * spans * partial_result_bytes(head_dim)
