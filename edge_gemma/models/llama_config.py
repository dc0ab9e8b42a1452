"""`LlamaConfig`: the configuration of the Llama family, from GGUF metadata and from a config.json. Knows no tensors.

All layers are alike. A window of attention is Mistral's: llama.cpp's converter leaves it out of a file, and llama.cpp
has none for this architecture, so the keys that say it are ours. Sources: llama.cpp's conversion/llama.py and loader,
the configuration classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edge_gemma import __version__
from edge_gemma.gguf.values import Metadata, bools, f32, string, u32
from edge_gemma.graph.states import AttentionState, Rope
from edge_gemma.kernels.layout import whole_head
from edge_gemma.models import limits
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.gguf_keys import REQUIRED, GgufKeys
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.llama_rope import read_rope

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"
ROPE_BASE = 1e4
HEAD_DIM = "attention.key_length"

# Defaults of transformers' configuration classes (4.57 and 5).
HF_LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": ROPE_BASE,
}
HF_MISTRAL = HF_LLAMA | {
    "intermediate_size": 14_336,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
MISTRAL_KV_HEADS = 8


class LlamaConfig(Architecture):
    """What files say of Llama 1 to 3, Mistral, SmolLM, H2O-Danube and their like."""

    name = "llama"
    hf_classes = (LLAMA, MISTRAL)
    hf_multimodal_classes = ()
    hf_tied = False
    control_ids: Mapping[str, int] = {}
    in_llama_cpp = True
    own_output_in_llama_cpp = True

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file. That there are biases or factors of the rotation, its tensors say."""
        keys.demand(*(key for key in REQUIRED if key != HEAD_DIM))
        _refuse_others(keys)
        n_layers = keys.u32("block_count", lo=1, hi=limits.MAX_LAYERS)
        d_model = keys.width("embedding_length", limits.MAX_WIDTH)
        n_heads = keys.u32("attention.head_count", lo=1, hi=limits.MAX_HEADS)
        context_length = keys.u32("context_length", lo=1, hi=limits.MAX_CONTEXT)
        head_dim = _head_dim(keys, d_model, n_heads)
        base, _ = keys.rope_bases(ROPE_BASE, None)
        layer = LayerConfig(
            keys.n_kv_heads(n_heads, n_layers),
            head_dim,
            keys.width("feed_forward_length", limits.MAX_FF_WIDTH),
            Rope(head_dim, base, keys.rope_scale(1.0), neighbours=True),
        )
        window = _shorter(
            keys.agreeing(keys.spellings("attention.sliding_window"), keys.metadata.u32, 0), context_length
        )
        windows = keys.windows(n_layers, window, limits.MAX_LAYERS + 1)
        return Config(
            model=self,
            d_model=d_model,
            n_heads=n_heads,
            vocab_size=keys.vocab_size(),
            context_length=context_length,
            rms_eps=keys.rms_eps(None),
            attn_scale=keys.agreeing_f32("attention.scale", default=head_dim**-0.5, lo=1e-6),
            attn_softcap=None,
            final_softcap=None,
            embedding_scale=1.0,
            layers=tuple(replace(layer, window=window) for window in windows),
        )

    def from_hf(self, fields: HfFields) -> Config:
        """A config.json. Llama's class has no window, whatever stands there; Mistral's has no biases."""
        mistral = fields.get("architectures") == [MISTRAL]
        fields = HfFields(fields.values, HF_MISTRAL if mistral else HF_LLAMA, fields.where)
        fields.refuse("mlp_bias")
        if (activation := fields.get("hidden_act")) not in ("silu", "swish"):
            raise fields.error("hidden_act", f"is {activation!r}; only silu is supported")
        n_heads = fields.integer("num_attention_heads", 1, limits.MAX_HEADS)
        context_length = fields.integer("max_position_embeddings", 1, limits.MAX_CONTEXT)
        d_model = fields.width("hidden_size", limits.MAX_WIDTH)
        fields = HfFields(fields.values, fields.defaults | _head_defaults(fields, n_heads, d_model), fields.where)
        head_dim = fields.head_dim()
        layer = LayerConfig(
            fields.n_kv_heads(n_heads),
            head_dim,
            fields.width("intermediate_size", limits.MAX_FF_WIDTH),
            read_rope(fields, head_dim),
            _hf_window(fields, context_length) if mistral else None,
        )
        return Config(
            model=self,
            d_model=d_model,
            n_heads=n_heads,
            vocab_size=fields.integer("vocab_size", 1, limits.MAX_VOCAB),
            context_length=context_length,
            rms_eps=fields.number("rms_norm_eps", limits.MIN_EPS, limits.MAX_EPS),
            attn_scale=head_dim**-0.5,
            attn_softcap=None,
            final_softcap=None,
            embedding_scale=1.0,
            layers=(layer,) * fields.integer("num_hidden_layers", 1, limits.MAX_LAYERS),
        )

    def metadata(self, config: Config) -> Metadata:
        """As llama.cpp's converter writes it, and the window under keys of ours."""
        return _llama_keys(config) | _own_keys(config)

    def guessed(self, config: Config) -> Config:
        """Without windows."""
        scale = config.layers[0].head_dim ** -0.5
        return replace(config.with_windows((None,) * len(config.layers)), attn_scale=scale)

    def states(self, config: Config) -> list[AttentionState]:
        """What is kept of a sequence, of each layer: whole heads, of whatever size the model's are."""
        return [AttentionState(each.n_kv_heads, whole_head(each.head_dim), each.window) for each in config.layers]


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def _refuse_others(keys: GgufKeys) -> None:
    """Models that llama.cpp gives the same name, and that are more than this."""
    if keys.metadata.u32(keys.key("expert_count"), 0):
        raise keys.error("expert_count", "is not 0; a mixture of experts (Mixtral) is not supported")
    if not keys.metadata.boolean(keys.key("attention.causal"), True):
        raise keys.error("attention.causal", "is false; attention to later tokens is not supported")


def _head_dim(keys: GgufKeys, d_model: int, n_heads: int) -> int:
    """Said, or as many as make the model's width."""
    if keys.key(HEAD_DIM) in keys.metadata:
        return keys.head_dim()
    head_dim = d_model // n_heads
    if d_model % n_heads or head_dim % 2 or not limits.MIN_HEAD_DIM <= head_dim <= limits.MAX_HEAD_DIM:
        reason = f"{n_heads} heads of {d_model} dimensions cannot be, and there is no {keys.key(HEAD_DIM)}"
        raise keys.error("attention.head_count", reason)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.metadata.u32(keys.key(name), head_dim) != head_dim:
            raise keys.error(name, f"must be {head_dim}, the width by the number of heads")
    return head_dim


def _llama_keys(config: Config) -> Metadata:
    arch, layer = config.architecture, config.layers[0]
    keys = {
        f"{arch}.block_count": u32(len(config.layers)),
        f"{arch}.context_length": u32(config.context_length),
        f"{arch}.embedding_length": u32(config.d_model),
        f"{arch}.feed_forward_length": u32(layer.d_ff),
        f"{arch}.attention.head_count": u32(config.n_heads),
        f"{arch}.attention.head_count_kv": u32(layer.n_kv_heads),
        f"{arch}.rope.freq_base": f32(layer.rope.base),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(config.rms_eps),
        f"{arch}.attention.key_length": u32(layer.head_dim),
        f"{arch}.attention.value_length": u32(layer.head_dim),
        f"{arch}.vocab_size": u32(config.vocab_size),
        f"{arch}.rope.dimension_count": u32(layer.head_dim),
    }
    if layer.rope.scale != 1.0:
        keys[f"{arch}.rope.scaling.type"] = string("linear")
        keys[f"{arch}.rope.scaling.factor"] = f32(layer.rope.scale)
    return keys


def _own_keys(config: Config) -> Metadata:
    ours = "edge_gemma"
    keys = {f"{ours}.version": string(__version__), f"{ours}.attention.scale": f32(config.attn_scale)}
    local = config.of_kind(local=True)
    if local is not None and local.window is not None:
        keys[f"{ours}.attention.sliding_window"] = u32(local.window)
        keys[f"{ours}.attention.sliding_window_pattern"] = bools(config.local_layers)
    return keys


# ---- config.json ---------------------------------------------------------------------------------------------------


def _head_defaults(fields: HfFields, n_heads: int, d_model: int) -> dict[str, Any]:
    """Null means as many key heads as query heads, a missing key the default of Mistral's class."""
    mistral = "sliding_window" in fields.defaults and "num_key_value_heads" not in fields.values
    return {
        "head_dim": d_model // n_heads,
        "num_key_value_heads": MISTRAL_KV_HEADS if mistral else n_heads,
    }


def _hf_window(fields: HfFields, context_length: int) -> int | None:
    """Null switches it off."""
    if fields.values.get("sliding_window", 0) is None:
        return None
    return _shorter(fields.integer("sliding_window", 1, limits.MAX_CONTEXT), context_length)


def _shorter(window: int, context_length: int) -> int | None:
    """A window of the whole context is none; so is 0."""
    return window if 0 < window < context_length else None
