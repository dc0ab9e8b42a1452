"""The rotation of the Llama family in a config.json: linear scaling, and the factors of Llama 3. Knows no tensors."""

from __future__ import annotations

import math

import numpy as np

from edge_gemma.graph.states import Rope
from edge_gemma.models import limits
from edge_gemma.models.hf_fields import HfFields

DEFAULTS_3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What llama.cpp's converter takes where a config.json does not say; transformers then refuses it."""


def read_rope(fields: HfFields, head_dim: int) -> Rope:
    """The rotation of all layers, as transformers 4 or 5 writes it. Raises CheckpointError naming the key."""
    said = fields.object("rope_scaling") | fields.object("rope_parameters")
    where = f"{fields.where}: rope"
    rope = HfFields(said, {"rope_theta": fields.get("rope_theta"), "partial_rotary_factor": 1}, where)
    base = rope.number("rope_theta", 1, limits.MAX_ROPE_BASE)
    if rope.get("partial_rotary_factor") != 1:
        raise rope.error("partial_rotary_factor", "is not 1; heads that are rotated in part are not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "linear":
        return Rope(head_dim, base, rope.number("factor", 1, limits.MAX_ROPE_SCALE), neighbours=True)
    if kind == "llama3":
        return Rope(head_dim, base, factors=_factors_3(said, where, head_dim, base), neighbours=True)
    if kind != "default":
        raise rope.error("rope_type", f"is {kind!r}; default, linear and llama3 are supported")
    return Rope(head_dim, base, neighbours=True)


def _factors_3(said: dict[str, object], where: str, head_dim: int, base: float) -> tuple[float, ...]:
    """What divides the frequency of each pair, in float32 as llama.cpp's converter computes it.

    1 for short waves, `factor` for waves longer than the old context; between them the frequency goes over smoothly.
    Source: transformers' modeling_rope_utils.py.
    """
    fields = HfFields(said, DEFAULTS_3, where)
    factor = fields.number("factor", 1, limits.MAX_ROPE_SCALE)
    low = fields.number("low_freq_factor", 1e-3, 1e3)
    high = fields.number("high_freq_factor", 1e-3, 1e3)
    old_context = fields.integer("original_max_position_embeddings", 1, limits.MAX_CONTEXT)
    if high <= low:
        raise fields.error("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    waves = np.float32(2 * math.pi) * np.float32(base) ** exponents  # positions that a turn takes
    smooth = (np.float32(old_context) / waves - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(waves < old_context / high, 1, np.where(waves > old_context / low, factor, between))
    return tuple(factors.astype(np.float32).tolist())
