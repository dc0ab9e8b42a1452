"""config.json -> the configuration of Gemma 4, in both of its dialects. Knows no tensors.

The heads of global layers are in `global_head_dim` and `num_global_key_value_heads`, or in `per_layer_config`, which
transformers writes since 5.20. Source: transformers' configuration classes.
"""

from __future__ import annotations

import math

from edge_gemma.graph.states import Rope
from edge_gemma.models import limits
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.layers import Experts, LayerConfig, Ropes, sources_of_keys, unlike_its_source

STILL = 1e30
"""Divides the frequency of a pair that does not turn, as in llama.cpp's files."""

# Defaults of transformers' configuration classes (5.24).
HF_4 = {
    "vocab_size": 262_144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        "sliding_attention": {"rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    },
}
HF_4_UNIFIED = HF_4 | {
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
UNIFIED = "gemma4_unified_text"


def read(model: Architecture, fields: HfFields) -> Config:
    """The text model's part of a config.json, with the heads of global layers in either dialect."""
    defaults = HF_4_UNIFIED if fields.get("model_type") == UNIFIED else HF_4
    fields = HfFields(fields.values, defaults, fields.where)
    _refuse_others(fields)
    n_layers = fields.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
    n_heads = fields.integer("num_attention_heads", 1, limits.MAX_HEADS)
    context_length = fields.integer("max_position_embeddings", 1, limits.MAX_CONTEXT)
    local = _local_layers(fields, n_layers)
    window = min(fields.integer("sliding_window", 1, limits.MAX_CONTEXT), context_length)
    windows = tuple(window if is_local else None for is_local in local)
    heads = _heads(fields, n_heads, local)
    n_sharing = fields.integer("num_kv_shared_layers", 0, n_layers - 1)
    try:
        sources = sources_of_keys(local, n_sharing)
    except ValueError as error:
        raise fields.error("num_kv_shared_layers", f"cannot be: {error}") from None
    d_model, d_ff = fields.width("hidden_size", limits.MAX_WIDTH), fields.width("intermediate_size", 1 << 17)
    wide = 2 * d_ff if fields.get("use_double_wide_mlp") else d_ff
    ropes, single = _ropes(fields, heads, local), bool(fields.get("attention_k_eq_v"))
    layers = tuple(
        LayerConfig(
            n_kv_heads,
            rope.dims,
            d_ff if source is None else wide,
            rope,
            window,
            source,
            keys_are_values=single and window is None and source is None,
        )
        for (_, n_kv_heads), rope, window, source in zip(heads, ropes.of(windows), windows, sources, strict=True)
    )
    if one := unlike_its_source(layers):
        raise fields.error("per_layer_config", f"cannot be: {one}")
    return Config(
        model=model,
        d_model=d_model,
        n_heads=n_heads,
        vocab_size=fields.integer("vocab_size", 1, limits.MAX_VOCAB),
        context_length=context_length,
        rms_eps=fields.number("rms_norm_eps", limits.MIN_EPS, limits.MAX_EPS),
        attn_scale=1.0,
        attn_softcap=None,
        final_softcap=fields.softcap("final_logit_softcapping", None),
        embedding_scale=math.sqrt(d_model),
        layers=layers,
        per_layer_input=_hf_per_layer_input(fields),
        experts=_hf_experts(fields),
        unused_rope=ropes.unused(windows),
    )


def _refuse_others(fields: HfFields) -> None:
    """Refuse what the forward pass has not."""
    fields.refuse("attention_bias")
    fields.demand_tanh_gelu(old_configs=False)
    if (which := fields.get("use_bidirectional_attention")) not in (None, False, "vision"):
        raise fields.error("use_bidirectional_attention", f"is {which!r}, which is not supported")


def _local_layers(fields: HfFields, n_layers: int) -> tuple[bool, ...]:
    """The last layer is global; transformers makes it so where no types are given."""
    local = fields.local_layers(n_layers)
    if fields.get("layer_types") is None:
        return (*local[:-1], False)
    if local[-1]:
        raise fields.error("layer_types", "must end in full_attention")
    return local


def _heads(fields: HfFields, n_heads: int, local: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Of each layer its head size and its number of key-value heads, which `per_layer_config` has where it is there,
    and else keys for global layers."""
    if fields.values.get("per_layer_config") is not None:
        per_layer = fields.object("per_layer_config")
        if unknown := [key for key in per_layer if not (key.isdecimal() and int(key) < len(local))]:
            raise fields.error("per_layer_config", f"names layer {unknown[0]!r}; there are {len(local)}")
        found = [
            _heads_of(fields, per_layer.get(str(i)) or {}, n_heads, f"per_layer_config.{i}") for i in range(len(local))
        ]
    else:
        own = {"head_dim": fields.get("global_head_dim")}
        if fields.get("attention_k_eq_v"):
            own["num_key_value_heads"] = fields.get("num_global_key_value_heads")
        at_global = _heads_of(fields, own, n_heads, "global layers")
        found = [_heads_of(fields, {}, n_heads, "") if is_local else at_global for is_local in local]
    for kind in (False, True):
        if len({found[i][0] for i, is_local in enumerate(local) if is_local == kind}) > 1:
            name = "local" if kind else "global"
            raise fields.error("per_layer_config", f"gives {name} layers different head sizes, which is not supported")
    return found


def _heads_of(fields: HfFields, own: object, n_heads: int, where: str) -> tuple[int, int]:
    if not isinstance(own, dict):
        raise fields.error(where, f"must be an object, got {own!r}")
    if others := own.keys() - {"head_dim", "num_key_value_heads"}:
        raise fields.error(where, f"has {', '.join(sorted(others))}, which is not supported")
    defaults = {key: fields.get(key) for key in ("head_dim", "num_key_value_heads")}
    layer = HfFields(own, defaults, f"{fields.where}: {where}" if where else fields.where)
    return layer.head_dim(), layer.n_kv_heads(n_heads)


def _ropes(fields: HfFields, heads: list[tuple[int, int]], local: tuple[bool, ...]) -> Ropes:
    by_kind = HfFields(fields.object("rope_parameters"), {}, f"{fields.where}: rope_parameters")
    at_local = HfFields(
        by_kind.object("sliding_attention"), {"rope_type": "default"}, f"{by_kind.where}: sliding_attention"
    )
    at_global = HfFields(
        by_kind.object("full_attention"),
        {"partial_rotary_factor": 1.0, "factor": 1.0},
        f"{by_kind.where}: full_attention",
    )
    if (kind := at_local.get("rope_type")) != "default":
        raise at_local.error("rope_type", f"is {kind!r}; only default is supported")
    if (kind := at_global.get("rope_type")) != "proportional":
        raise at_global.error("rope_type", f"is {kind!r}; only proportional is supported")
    dims = {is_local: head_dim for (head_dim, _), is_local in zip(heads, local, strict=True)}
    dims_global = dims[False]
    turning = int(at_global.number("partial_rotary_factor", 0, 1) * dims_global // 2)
    factors = (1.0,) * turning + (STILL,) * (dims_global // 2 - turning)
    scale = at_global.number("factor", 1, limits.MAX_ROPE_SCALE)
    return Ropes(
        Rope(dims_global, at_global.number("rope_theta", 1, limits.MAX_ROPE_BASE), scale, factors),
        Rope(dims.get(True, fields.head_dim()), at_local.number("rope_theta", 1, limits.MAX_ROPE_BASE)),
    )


def _hf_per_layer_input(fields: HfFields) -> int:
    """transformers has a default, but null is none."""
    key = "hidden_size_per_layer_input"
    if not fields.values.get(key, fields.defaults[key]):
        return 0
    width, rows, tokens = (
        fields.width(key, limits.MAX_WIDTH),
        fields.get("vocab_size_per_layer_input"),
        fields.get("vocab_size"),
    )
    if rows != tokens:
        raise fields.error("vocab_size_per_layer_input", f"is {rows!r}, vocab_size {tokens!r}; they must be equal")
    return width


def _hf_experts(fields: HfFields) -> Experts | None:
    if not fields.get("enable_moe_block"):
        return None
    count = fields.integer("num_experts", 1, limits.MAX_EXPERTS)
    used = fields.integer("top_k_experts", 1, count)
    return Experts(count, used, fields.width("moe_intermediate_size", limits.MAX_FF_WIDTH))
