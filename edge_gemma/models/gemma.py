"""Gemma 1, 2 and 3 (text) and VaultGemma: what distinguishes them, their tensors, and the forward pass they share.

Reads like the papers (arXiv:2403.08295, 2408.00118, 2503.19786, 2510.15001). Knows no files, threads, instruction sets
or sampling. T: rows of a step, D: model width, F: feed-forward width, H x d: query heads, K x d: key-value heads,
V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.models.architecture import Config
from edge_gemma.models.decoder import Decoder
from edge_gemma.models.layer_modules import MATRICES, PRE_AND_POST_NORMS, PRE_NORMS, QK_NORMS, matrix_shapes
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT, TensorSpec
from edge_gemma.models.weights import LayerWeights, Weights

NORMS_VAULT = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"}
NORM_SHIFT = 1.0
"""Checkpoints hold w where the model computes x / rms(x) * (1 + w), GGUF files 1 + w."""

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
HF_VAULT = HF_2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
HF_3 = HF_2 | {"vocab_size": 262_208, "max_position_embeddings": 131_072}


@dataclass(frozen=True, eq=False, repr=False)
class Gemma(Decoder):
    """One generation: its fields say what distinguishes it, the forward pass is the same."""

    norms: Mapping[str, str] = field(kw_only=True)
    """transformers' names of a layer's norms -> roles."""
    matrices = MATRICES

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
        D, d, shapes = config.d_model, config.layers[i].head_dim, matrix_shapes(config, i)
        for module, role in MATRICES.items():
            yield TensorSpec(role, shapes[role], f"layers.{i}.{module}.weight", i)
        for module, role in self.norms.items():
            width = d if module in QK_NORMS else D
            yield TensorSpec(role, (width,), f"layers.{i}.{module}.weight", i, shift=NORM_SHIFT)

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the last layer's output, (T, D)."""
        x = p.embed(weights.token_embd, config.embedding_scale, out="x")  # (T, D)
        for layer, w, cache in zip(config.layers, weights.layers, caches, strict=True):
            attended = attention(p, config, layer, w, cache, x)
            residual(p, config, x, attended, w.get("post_attention_norm"))
            residual(p, config, x, feed_forward(p, config, w, x), w.get("post_ffw_norm"))
        return x


def attention(p: Program, config: Config, layer: LayerConfig, w: LayerWeights, cache: LayerCache, x: Buffer) -> Buffer:
    """Grouped-query attention, over the window on local layers; with QK-norm from Gemma 3 on."""
    eps = config.rms_eps
    h = p.rms_norm(x, w.attn_norm, eps, out="h", consumers=(w.attn_q, w.attn_k, w.attn_v))  # (T, D)
    q = p.matmul(h, w.attn_q, out="q")  # (T, H d)
    k = p.matmul(h, w.attn_k, out="k")  # (T, K d)
    v = p.matmul(h, w.attn_v, out="v")  # (T, K d)
    # the scale of q k^T is in q, once for all keys
    p.rotate(q, layer.rope, norm=w.get("attn_q_norm"), epsilon=eps, scale=config.attn_scale)
    p.rotate(k, layer.rope, norm=w.get("attn_k_norm"), epsilon=eps, scale=1.0)
    p.append(cache, k, v)
    a = p.attend(
        cache,
        q,
        window=layer.window,
        ahead=layer.ahead,
        softcap=config.attn_softcap,
        out="a",
        consumers=(w.attn_output,),
    )  # (T, H d)
    return p.matmul(a, w.attn_output, out="o")  # (T, D)


def feed_forward(p: Program, config: Config, w: LayerWeights, x: Buffer) -> Buffer:
    """The gated feed-forward part, GeGLU (arXiv:2002.05202)."""
    h = p.rms_norm(x, w.ffn_norm, config.rms_eps, out="h", consumers=(w.ffn_gate, w.ffn_up))  # (T, D)
    gated = p.gelu_gate(h, w.ffn_gate, w.ffn_up, out="gated", consumers=(w.ffn_down,))  # (T, F)
    return p.matmul(gated, w.ffn_down, out="o")  # (T, D)


def residual(p: Program, config: Config, x: Buffer, y: Buffer, post_norm: Tensor | None) -> Buffer:
    """x = x + y, or x + norm(y) where the architecture has post-norms."""
    return p.add(x, y) if post_norm is None else p.add_norm(x, y, post_norm, config.rms_eps)


FAMILIES = (
    Gemma(
        name="gemma",
        hf_classes=("GemmaForCausalLM",),
        hf_defaults=HF_1,
        norms=PRE_NORMS,
        local_attention=False,
        # of CodeGemma
        control_ids={"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107},
    ),
    Gemma(
        name="gemma2",
        hf_classes=("Gemma2ForCausalLM",),
        hf_defaults=HF_2,
        norms=PRE_AND_POST_NORMS,
        attn_softcaps=True,
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
        norms=PRE_AND_POST_NORMS | QK_NORMS,
        period=6,
        rope_base=1e6,
        rope_base_local=1e4,
        rope_scales=dict.fromkeys(((34, 2560), (48, 3840), (62, 5376)), 8.0),
        softcap_not_meant=(26, 1152),
        default_eps=1e-6,
        scaled_by_width=62,
        own_output_in_llama_cpp=True,
    ),
    # Gemma 2 without norms after attention and feed-forward. llama.cpp has no such architecture, so that the keys are
    # ours: as Gemma 2's, but a file that does not say so has neither soft-caps nor local layers.
    Gemma(
        name="vaultgemma",
        hf_classes=("VaultGemmaForCausalLM",),
        hf_defaults=HF_VAULT,
        norms=NORMS_VAULT,
        attn_softcaps=True,
        period=2,
        in_llama_cpp=False,
    ),
)
