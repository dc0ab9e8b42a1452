"""The keys of a GGUF file that say the hyper-parameters of a decoder, as llama.cpp's converter writes them, and ours.

llama.cpp guesses the attention scale and the pattern of local layers from the number of layers; `edge_gemma.*` states
them. The other way round: `gguf_keys.py`.
"""

from __future__ import annotations

from edge_gemma import __version__
from edge_gemma.gguf.values import Metadata, bools, f32, string, u32
from edge_gemma.graph.states import Rope
from edge_gemma.models.architecture import Config

LLAMA_CPP_ROPE_BASE = 1e4


def decoder_metadata(config: Config, usual_local: tuple[bool, ...], *, own_base: bool) -> Metadata:
    """Of a model whose layers differ in their windows and rotations alone.

    usual_local: the local layers a reader assumes that is not told; own_base: local layers have a base of their own.
    """
    at_global, at_local = _rope(config, local=False), _rope(config, local=True)
    return (
        _sizes(config)
        | _attention_keys(config, usual_local)
        | _rope_keys(config.architecture, at_global, at_local if own_base else None)
        | _own_keys(config, at_global, at_local)
    )


def _sizes(config: Config) -> Metadata:
    arch, layer = config.architecture, config.layers[0]
    return {
        f"{arch}.context_length": u32(config.context_length),
        f"{arch}.embedding_length": u32(config.d_model),
        f"{arch}.block_count": u32(len(config.layers)),
        f"{arch}.feed_forward_length": u32(layer.d_ff),
        f"{arch}.attention.head_count": u32(config.n_heads),
        f"{arch}.attention.head_count_kv": u32(layer.n_kv_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(config.rms_eps),
        f"{arch}.attention.key_length": u32(layer.head_dim),
        f"{arch}.attention.value_length": u32(layer.head_dim),
    }


def _attention_keys(config: Config, usual_local: tuple[bool, ...]) -> Metadata:
    arch, local_layer, keys = config.architecture, config.of_kind(local=True), {}
    if config.attn_softcap is not None:
        keys[f"{arch}.attn_logit_softcapping"] = f32(config.attn_softcap)
    if config.final_softcap is not None:
        keys[f"{arch}.final_logit_softcapping"] = f32(config.final_softcap)
    if local_layer is not None and local_layer.window is not None:
        keys[f"{arch}.attention.sliding_window"] = u32(local_layer.window)
        if config.local_layers != usual_local:
            keys[f"{arch}.attention.sliding_window_pattern"] = bools(config.local_layers)
    return keys


def _own_keys(config: Config, at_global: Rope, at_local: Rope) -> Metadata:
    ours = "edge_gemma"
    return {
        f"{ours}.version": string(__version__),
        f"{ours}.attention.scale": f32(config.attn_scale),
        f"{ours}.attention.sliding_window_pattern": bools(config.local_layers),
        f"{ours}.rope.freq_base": f32(at_global.base),
        f"{ours}.rope.freq_base_local": f32(at_local.base),
        f"{ours}.rope.scale_linear": f32(at_global.scale),
    }


def _rope(config: Config, *, local: bool) -> Rope:
    """The rotation of local or of global layers, also where there are none."""
    layer = config.of_kind(local=local)
    return layer.rope if layer else config.unused_rope or config.layers[0].rope


def _rope_keys(arch: str, at_global: Rope, at_local: Rope | None) -> Metadata:
    keys = {}
    if at_local is not None or at_global.base != LLAMA_CPP_ROPE_BASE:
        keys[f"{arch}.rope.freq_base"] = f32(at_global.base)
    if at_local is not None:
        keys[f"{arch}.rope.freq_base_swa"] = f32(at_local.base)
    if at_global.scale != 1.0:
        keys[f"{arch}.rope.scaling.type"] = string("linear")
        keys[f"{arch}.rope.scaling.factor"] = f32(at_global.scale)
    return keys
