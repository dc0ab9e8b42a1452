"""GGUF metadata -> the configuration of Gemma 4, as llama.cpp's and Ollama's converters write it. Knows no tensors.

One fact the metadata does not tell: where values are made as keys are. There, no tensor for values is in the file.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edge_gemma.graph.states import Rope
from edge_gemma.models import limits
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.gguf_keys import REQUIRED, GgufKeys
from edge_gemma.models.layers import Experts, LayerConfig, Ropes, sources_of_keys, unlike_its_source

REQUIRED_4 = (
    *REQUIRED,
    "attention.layer_norm_rms_epsilon",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.sliding_window_pattern",
    "embedding_length_per_layer_input",
)
ROPE_BASE, ROPE_BASE_LOCAL = 1e6, 1e4


def read(model: Architecture, keys: GgufKeys) -> Config:
    """The metadata of a GGUF file, and its tensors' names, which alone tell where values are made as keys are."""
    keys.demand(*REQUIRED_4)
    if not keys.metadata.boolean(keys.key("attention.causal"), True):
        raise keys.error("attention.causal", "is false; attention to later tokens is not supported")
    n_layers = keys.u32("block_count", lo=1, hi=limits.MAX_LAYERS)
    d_model = keys.width("embedding_length", limits.MAX_WIDTH)
    n_heads = keys.u32("attention.head_count", lo=1, hi=limits.MAX_HEADS)
    context_length = keys.u32("context_length", lo=1, hi=limits.MAX_CONTEXT)
    base, base_local = keys.rope_bases(ROPE_BASE, ROPE_BASE_LOCAL)
    ropes = Ropes(Rope(keys.head_dim(), base, keys.rope_scale(1.0)), Rope(keys.head_dim("_swa"), base_local))
    windows = keys.windows(n_layers, keys.window(context_length, None, known=True), n_layers)
    n_sharing = keys.metadata.u32(keys.key("attention.shared_kv_layers"), 0, hi=n_layers - 1)
    try:
        sources = sources_of_keys([window is not None for window in windows], n_sharing)
    except ValueError as error:
        raise keys.error("attention.shared_kv_layers", str(error)) from None
    layers = tuple(
        LayerConfig(n_kv_heads, rope.dims, d_ff, rope, window, source)
        for n_kv_heads, d_ff, rope, window, source in zip(
            keys.kv_heads(n_heads, n_layers),
            keys.widths("feed_forward_length", n_layers, limits.MAX_FF_WIDTH),
            ropes.of(windows),
            windows,
            sources,
            strict=True,
        )
    )
    if one := unlike_its_source(layers):
        raise keys.error("attention.head_count_kv", one)
    return Config(
        model=model,
        d_model=d_model,
        n_heads=n_heads,
        vocab_size=keys.vocab_size(),
        context_length=context_length,
        rms_eps=keys.rms_eps(None),
        attn_scale=1.0,
        attn_softcap=None,
        final_softcap=_final_softcap(keys),
        embedding_scale=math.sqrt(d_model),
        layers=_with_single_products(layers, keys),
        per_layer_input=_per_layer_input(keys),
        experts=_experts(keys, n_layers),
        unused_rope=ropes.unused(windows),
    )


def _with_single_products(layers: tuple[LayerConfig, ...], keys: GgufKeys) -> tuple[LayerConfig, ...]:
    """Global layers make values as keys are made if none of them has a tensor for values."""
    found = [i for i, layer in enumerate(layers) if layer.window is None and layer.shared_with is None]
    if any(f"blk.{i}.attn_v.weight" in keys.tensors for i in found):
        return layers
    return tuple(replace(layer, keys_are_values=True) if i in found else layer for i, layer in enumerate(layers))


def _final_softcap(keys: GgufKeys) -> float | None:
    """0 says that there is none, as a missing key does."""
    name = "final_logit_softcapping"
    return None if keys.metadata.f32(keys.key(name), 0.0) == 0 else keys.softcap(name, None, known=True)


def _per_layer_input(keys: GgufKeys) -> int:
    name = "embedding_length_per_layer_input"
    return 0 if keys.u32(name, lo=0, hi=limits.MAX_WIDTH) == 0 else keys.width(name, limits.MAX_WIDTH)


def _experts(keys: GgufKeys, n_layers: int) -> Experts | None:
    count = keys.metadata.u32(keys.key("expert_count"), 0, hi=limits.MAX_EXPERTS)
    if not count:
        return None
    used = keys.u32("expert_used_count", lo=1, hi=count)
    widths = set(keys.widths("expert_feed_forward_length", n_layers, limits.MAX_FF_WIDTH))
    if len(widths) != 1:
        raise keys.error("expert_feed_forward_length", "differs between layers, which is not supported")
    return Experts(count, used, widths.pop(), fused="blk.0.ffn_gate_exps.weight" not in keys.tensors)
