"""Gemma 1, 2 and 3 (text): what distinguishes the families, their tensors, and the forward pass they share.

Reads like the papers (arXiv:2403.08295, 2408.00118, 2503.19786). Knows no files, threads, instruction sets or
sampling. T: rows of a step, D: model width, F: feed-forward width, H x d: query heads, K x d: key-value heads,
V: vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge_gemma.gguf.file import Tensor
from edge_gemma.gguf.values import Metadata
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program, Rows
from edge_gemma.graph.states import Rope
from edge_gemma.models import limits
from edge_gemma.models.architecture import Architecture, Config, LayerConfig, alike_but_for_windows
from edge_gemma.models.gguf_keys import REQUIRED, GgufKeys, periodic
from edge_gemma.models.gguf_metadata import decoder_metadata
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT, TensorSpec
from edge_gemma.models.weights import LayerWeights, Weights

MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Traps: `post_attention_layernorm` is the norm *before* the feed-forward in Gemma 1 and the one *after* attention from
# Gemma 2 on; and checkpoints hold w where the model computes x * (1 + w), while GGUF holds 1 + w.
NORMS_1 = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
NORMS_2 = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
NORM_SHIFT = 1.0

# Defaults of transformers' configuration classes (4.57 and 5) that a `Gemma` does not say itself.
HF_1 = {"head_dim": 256, "rms_norm_eps": 1e-6, "vocab_size": 256_000, "max_position_embeddings": 8192} | {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
HF_2 = HF_1 | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
HF_3 = HF_2 | {"vocab_size": 262_208, "max_position_embeddings": 131_072}


@dataclass(frozen=True, eq=False)
class Gemma(Architecture):
    """One family: what it is, and what it means where a file does not say."""

    name: str
    hf_classes: tuple[str, ...]
    hf_defaults: Mapping[str, Any]
    norms: Mapping[str, str]
    """transformers' names of a layer's norms -> roles."""
    hf_multimodal_classes: tuple[str, ...] = ()
    attn_softcap: float | None = None
    final_softcap: float | None = None
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
    matrices: Mapping[str, str] = field(default_factory=lambda: MATRICES)

    # ---- configuration -------------------------------------------------------------------------------------------

    def from_gguf(self, keys: GgufKeys) -> Config:
        """Gemma's metadata."""
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
        """Gemma's config.json."""
        fields = HfFields(fields.values, self._hf_defaults(), fields.where)
        fields.refuse("attention_bias", "use_bidirectional_attention")
        fields.demand_tanh_gelu(old_configs=not self.local_attention)
        if self.attn_softcap is None and self.local_attention and fields.get("attn_logit_softcapping") is not None:
            raise fields.error("attn_logit_softcapping", f"is not part of {self.name}")
        n_layers = fields.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
        n_heads = fields.integer("num_attention_heads", 1, limits.MAX_HEADS)
        head_dim = fields.head_dim()
        context_length = fields.integer("max_position_embeddings", 1, limits.MAX_CONTEXT)
        scaled = self.local_attention  # Gemma 1 divides by the head's dimensions, whatever stands there
        divisor = fields.number("query_pre_attn_scalar", 1e-3, 1e6) if scaled else float(head_dim)
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
            attn_softcap=fields.softcap("attn_logit_softcapping") if self.attn_softcap else None,
            final_softcap=fields.softcap("final_logit_softcapping") if self.local_attention else None,
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
            **self.hf_defaults,
            "rope_theta": self.rope_base,
            "rope_local_base_freq": self.rope_base_local,
            "sliding_window_pattern": self.period,
            "attn_logit_softcapping": self.attn_softcap,
            "final_logit_softcapping": self.final_softcap,
        }

    # ---- tensors -------------------------------------------------------------------------------------------------

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Matrices of a layer, then its norms."""
        D, V = config.d_model, config.vocab_size
        return [
            TensorSpec("token_embd", (V, D), HF_EMBEDDING),
            TensorSpec("output", (V, D), HF_OUTPUT, optional=True),
            *(spec for i in range(len(config.layers)) for spec in self._tensors_of_layer(config, i)),
            TensorSpec("output_norm", (D,), "norm.weight", shift=NORM_SHIFT),
        ]

    def _tensors_of_layer(self, config: Config, i: int) -> Iterator[TensorSpec]:
        layer, D = config.layers[i], config.d_model
        F, d, q, kv = layer.d_ff, layer.head_dim, config.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
        shapes = {"attn_q": (q, D), "attn_k": (kv, D), "attn_v": (kv, D), "attn_output": (D, q)}
        shapes |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
        for module, role in MATRICES.items():
            yield TensorSpec(role, shapes[role], f"layers.{i}.{module}.weight", i)
        for module, role in self.norms.items():
            width = d if module in HEAD_NORMS else D
            yield TensorSpec(role, (width,), f"layers.{i}.{module}.weight", i, shift=NORM_SHIFT)

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Rows:
        """Tokens to the last layer's output, (T, D)."""
        x = p.embed(weights.token_embd, config.embedding_scale, out="x")  # (T, D)
        for layer, w, cache in zip(config.layers, weights.layers, caches, strict=True):
            attended = attention(p, config, layer, w, cache, x)
            residual(p, config, x, attended, w.get("post_attention_norm"))
            residual(p, config, x, feed_forward(p, config, w, x), w.get("post_ffw_norm"))
        return x

    def record_logits(self, p: Program, config: Config, weights: Weights, x: Rows, logits: Rows) -> None:
        """The last layer's output to logits, (T, V)."""
        h = p.rms_norm(x, weights.output_norm, config.rms_eps, out="h", takers=(weights.output,))  # (T, D)
        p.matmul(h, weights.output, out=logits.name, rows=logits)  # (T, V)
        if config.final_softcap is not None:
            p.softcap(logits, config.final_softcap)


def attention(p: Program, config: Config, layer: LayerConfig, w: LayerWeights, cache: LayerCache, x: Rows) -> Rows:
    """Grouped-query attention, over the window on local layers."""
    eps = config.rms_eps
    h = p.rms_norm(x, w.attn_norm, eps, out="h", takers=(w.attn_q, w.attn_k, w.attn_v))  # (T, D)
    q = p.matmul(h, w.attn_q, out="q")  # (T, H d)
    k = p.matmul(h, w.attn_k, out="k")  # (T, K d)
    v = p.matmul(h, w.attn_v, out="v")  # (T, K d)
    p.rotate(q, layer.rope, norm=w.get("attn_q_norm"), epsilon=eps, scale=config.attn_scale)
    p.rotate(k, layer.rope, norm=w.get("attn_k_norm"), epsilon=eps, scale=1.0)
    p.append(cache, k, v)
    a = p.attend(
        cache, q, window=layer.window, softcap=config.attn_softcap, out="a", takers=(w.attn_output,)
    )  # (T, H d)
    return p.matmul(a, w.attn_output, out="o")  # (T, D)


def feed_forward(p: Program, config: Config, w: LayerWeights, x: Rows) -> Rows:
    """GeGLU."""
    h = p.rms_norm(x, w.ffn_norm, config.rms_eps, out="h", takers=(w.ffn_gate, w.ffn_up))  # (T, D)
    gated = p.gelu_gate(h, w.ffn_gate, w.ffn_up, out="gated", takers=(w.ffn_down,))  # (T, F)
    return p.matmul(gated, w.ffn_down, out="o")  # (T, D)


def residual(p: Program, config: Config, x: Rows, y: Rows, post_norm: Tensor | None) -> Rows:
    """x = x + y, or x + norm(y) where the architecture has post-norms."""
    return p.add(x, y) if post_norm is None else p.add_norm(x, y, post_norm, config.rms_eps)


FAMILIES = (
    Gemma(
        name="gemma",
        hf_classes=("GemmaForCausalLM",),
        hf_defaults=HF_1,
        norms=NORMS_1,
        local_attention=False,
        # of CodeGemma
        control_ids={"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107},
    ),
    Gemma(
        name="gemma2",
        hf_classes=("Gemma2ForCausalLM",),
        hf_defaults=HF_2,
        norms=NORMS_2,
        attn_softcap=50.0,
        final_softcap=30.0,
        window=4096,
        period=2,
        scaled_by_width=46,
    ),
    Gemma(
        name="gemma3",
        hf_classes=("Gemma3ForCausalLM",),
        hf_multimodal_classes=("Gemma3ForConditionalGeneration",),
        hf_defaults=HF_3,
        norms=NORMS_2 | HEAD_NORMS,
        period=6,
        rope_base=1e6,
        rope_base_local=1e4,
        rope_scales=dict.fromkeys(((34, 2560), (48, 3840), (62, 5376)), 8.0),
        softcap_not_meant=(26, 1152),
        default_eps=1e-6,
        scaled_by_width=62,
        own_output_in_llama_cpp=True,
    ),
)
