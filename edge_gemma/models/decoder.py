"""`Decoder`: the configuration of Gemma 1 to 3, whose layers differ in window and rotation alone. Knows no tensors.

An architecture says in fields what it is and what a file may leave out; both readers, of GGUF metadata and of a
config.json, are here. Sources: llama.cpp's converter and loader of each architecture, Ollama's convert_gemma*.go, the
configurations Google published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge_gemma.gguf.values import Metadata
from edge_gemma.graph.states import Rope
from edge_gemma.models import limits
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.gguf_keys import REQUIRED, GgufKeys
from edge_gemma.models.gguf_metadata import decoder_metadata
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.layers import LayerConfig, alike_but_for_windows, periodic


@dataclass(frozen=True, eq=False, repr=False)
class Decoder(Architecture):
    """What a family is, and what it means where a file does not say."""

    name: str
    hf_classes: tuple[str, ...]
    hf_defaults: Mapping[str, Any]
    """Of transformers' configuration class, beside those that other fields say."""
    hf_multimodal_classes: tuple[str, ...] = ()
    attn_softcap: float | None = None
    final_softcap: float | None = None
    """Where a GGUF file does not say."""
    attn_softcaps: bool = False
    """transformers' class has a soft-cap of attention."""
    local_attention: bool = True
    """There are local layers and soft-caps at all."""
    window: int | None = None
    """Of local layers, where a GGUF file does not say."""
    period: int = 1
    """Every `period`-th layer is global, the others are local."""
    rope_base: float = 1e4
    rope_base_local: float | None = None
    """Of local layers; None: the same as `rope_base`."""
    rope_scales: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """By (layers, width): what divides positions in published models, for early files of Ollama do not say."""
    softcap_not_meant: tuple[int, int] | None = None
    """(layers, width) of a published model to which these files give a final soft-cap of 30 that it has not."""
    default_eps: float | None = None
    """They leave it out, too, where this is set."""
    scaled_by_width: int | None = None
    """The model of so many layers, the 27B, divides scores by sqrt(D / H) instead of sqrt(d)."""
    control_ids: Mapping[str, int] = field(default_factory=dict)
    in_llama_cpp: bool = True
    own_output_in_llama_cpp: bool = False

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file."""
        keys.demand(*REQUIRED)
        n_layers = keys.u32("block_count", lo=1, hi=limits.MAX_LAYERS)
        d_model = keys.width("embedding_length", limits.MAX_WIDTH)
        n_heads = keys.u32("attention.head_count", lo=1, hi=limits.MAX_HEADS)
        head_dim, size = keys.head_dim(), (n_layers, d_model)
        context_length = keys.u32("context_length", lo=1, hi=limits.MAX_CONTEXT)
        window = keys.window(context_length, self.window, known=self.local_attention)
        rope_base, rope_base_local = keys.rope_bases(self.rope_base, self.rope_base_local)
        rope = Rope(head_dim, rope_base, keys.rope_scale(self.rope_scales.get(size, 1.0)))
        d_ff = keys.width("feed_forward_length", limits.MAX_FF_WIDTH)
        layer = LayerConfig(keys.n_kv_heads(n_heads, n_layers), head_dim, d_ff, rope)
        windows = keys.windows(n_layers, window, self.period)
        layers, unused_rope = alike_but_for_windows(layer, windows, Rope(head_dim, rope_base_local))
        scale = self._usual_scale(n_layers, d_model, n_heads, head_dim)
        final_softcap = keys.softcap("final_logit_softcapping", self.final_softcap, known=self.local_attention)
        return Config(
            model=self,
            d_model=d_model,
            n_heads=n_heads,
            vocab_size=keys.vocab_size(),
            context_length=context_length,
            rms_eps=keys.rms_eps(self.default_eps),
            attn_scale=keys.agreeing_f32("attention.scale", default=scale, lo=1e-6),
            attn_softcap=keys.softcap("attn_logit_softcapping", self.attn_softcap, known=self.local_attention),
            final_softcap=None if size == self.softcap_not_meant and final_softcap == 30 else final_softcap,
            embedding_scale=math.sqrt(d_model),
            layers=layers,
            unused_rope=unused_rope,
        )

    def from_hf(self, fields: HfFields) -> Config:
        """The text model's part of a config.json."""
        fields = HfFields(fields.values, self._hf_defaults(), fields.where)
        fields.refuse("attention_bias", "use_bidirectional_attention")
        fields.demand_tanh_gelu(old_configs=not self.local_attention)
        capped = self.local_attention
        if capped and not self.attn_softcaps and fields.get("attn_logit_softcapping") is not None:
            raise fields.error("attn_logit_softcapping", f"is not part of {self.name}")
        n_layers = fields.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
        n_heads = fields.integer("num_attention_heads", 1, limits.MAX_HEADS)
        head_dim = fields.head_dim()
        context_length = fields.integer("max_position_embeddings", 1, limits.MAX_CONTEXT)
        # Gemma 1 divides by the head's dimensions, whatever stands there
        divisor = fields.number("query_pre_attn_scalar", 1e-3, 1e6) if self.local_attention else float(head_dim)
        rope_base, rope_base_local, rope_scale = fields.rope()
        local = fields.local_layers(n_layers) if self.local_attention else (False,) * n_layers
        window = min(fields.integer("sliding_window", 1, limits.MAX_CONTEXT), context_length) if any(local) else None
        d_model = fields.width("hidden_size", limits.MAX_WIDTH)
        d_ff = fields.width("intermediate_size", limits.MAX_FF_WIDTH)
        layer = LayerConfig(fields.n_kv_heads(n_heads), head_dim, d_ff, Rope(head_dim, rope_base, rope_scale))
        windows = tuple(window if is_local else None for is_local in local)
        layers, unused_rope = alike_but_for_windows(layer, windows, Rope(head_dim, rope_base_local))
        return Config(
            model=self,
            d_model=d_model,
            n_heads=n_heads,
            vocab_size=fields.integer("vocab_size", 1, limits.MAX_VOCAB),
            context_length=context_length,
            rms_eps=fields.number("rms_norm_eps", limits.MIN_EPS, limits.MAX_EPS),
            attn_scale=divisor**-0.5,
            attn_softcap=fields.softcap("attn_logit_softcapping", self.attn_softcap) if self.attn_softcaps else None,
            final_softcap=fields.softcap("final_logit_softcapping", self.final_softcap) if capped else None,
            embedding_scale=math.sqrt(d_model),
            layers=layers,
            unused_rope=unused_rope,
        )

    def metadata(self, config: Config) -> Metadata:
        """With `rope.freq_base` also where it is llama.cpp's default, if local layers have another."""
        usual = periodic(self.period, len(config.layers))
        return decoder_metadata(config, usual, own_base=self.rope_base_local is not None)

    def guessed(self, config: Config) -> Config:
        """With the attention scale and the local layers that the number of layers suggests."""
        n_layers, local_layer = len(config.layers), config.of_kind(local=True)
        window = local_layer.window if local_layer else self.window
        windows = tuple(window if local else None for local in periodic(self.period, n_layers))
        scale = self._usual_scale(n_layers, config.d_model, config.n_heads, config.layers[0].head_dim)
        return replace(config.with_windows(windows), attn_scale=scale)

    def _usual_scale(self, n_layers: int, d_model: int, n_heads: int, head_dim: int) -> float:
        return 1 / math.sqrt(d_model / n_heads if n_layers == self.scaled_by_width else head_dim)

    def _hf_defaults(self) -> dict[str, Any]:
        return {
            "rope_theta": self.rope_base,
            "rope_local_base_freq": self.rope_base_local,
            "sliding_window_pattern": self.period,
            "attn_logit_softcapping": self.attn_softcap,
            "final_logit_softcapping": self.final_softcap,
        } | dict(self.hf_defaults)
