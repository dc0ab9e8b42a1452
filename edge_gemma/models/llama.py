"""Llama, Mistral, SmolLM, H2O-Danube, Sheared-LLaMA: their tensors, and the forward pass. arXiv:2302.13971.

Knows no files, threads, instruction sets or sampling. T: rows of a step, D: model width, F: feed-forward width, H x d:
query heads, K x d: key-value heads, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.graph.states import Rope
from edge_gemma.models.architecture import Config
from edge_gemma.models.layer_modules import ATTENTION, MATRICES, PRE_NORMS, matrix_shapes
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.llama_config import LlamaConfig
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT, TensorSpec
from edge_gemma.models.weights import LayerWeights, Weights


class Llama(LlamaConfig):
    """The family. Its files have the rows of query and key heads in an order in which neighbours rotate as a pair."""

    matrices: Mapping[str, str] = MATRICES

    # ---- tensors -------------------------------------------------------------------------------------------------

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Matrices of a layer, its biases, then its norms."""
        D, V, rope = config.d_model, config.vocab_size, config.layers[0].rope
        return [
            TensorSpec("rope_freqs", (rope.dims // 2,), "", optional=True, values=rope.factors),
            TensorSpec("token_embd", (V, D), HF_EMBEDDING),
            TensorSpec("output", (V, D), HF_OUTPUT, optional=True),
            *(spec for i in range(len(config.layers)) for spec in _of_layer(config, i)),
            TensorSpec("output_norm", (D,), "norm.weight"),
        ]

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the last layer's output, (T, D)."""
        x = p.embed(weights.token_embd, config.embedding_scale, out="x")  # (T, D)
        for layer, w, cache in zip(config.layers, weights.layers, caches, strict=True):
            rope = replace(layer.rope, factors=weights.rope_factors)
            p.add(x, attention(p, config, layer, rope, w, cache, x))
            p.add(x, feed_forward(p, config, w, x))
        return x


def attention(
    p: Program, config: Config, layer: LayerConfig, rope: Rope, w: LayerWeights, cache: LayerCache, x: Buffer
) -> Buffer:
    """Grouped-query attention, over the window if there is one. Kernels take heads padded with zeros."""
    eps, d = config.rms_eps, layer.head_dim
    h = p.rms_norm(x, w.attn_norm, eps, out="h", consumers=(w.attn_q, w.attn_k, w.attn_v))  # (T, D)
    q = p.pad_heads(linear(p, h, w, "attn_q", out="q"), d)  # (T, H d)
    k = p.pad_heads(linear(p, h, w, "attn_k", out="k"), d)  # (T, K d)
    v = p.pad_heads(linear(p, h, w, "attn_v", out="v"), d)  # (T, K d)
    p.rotate(q, rope, norm=None, epsilon=eps, scale=config.attn_scale)
    p.rotate(k, rope, norm=None, epsilon=eps, scale=1.0)
    p.append(cache, k, v)
    a = p.attend(
        cache, q, window=layer.window, softcap=None, head_dim=d, out="a", consumers=(w.attn_output,)
    )  # (T, H d)
    return linear(p, a, w, "attn_output", out="o")  # (T, D)


def feed_forward(p: Program, config: Config, w: LayerWeights, x: Buffer) -> Buffer:
    """The gated feed-forward part, SwiGLU (arXiv:2002.05202)."""
    h = p.rms_norm(x, w.ffn_norm, config.rms_eps, out="h", consumers=(w.ffn_gate, w.ffn_up))  # (T, D)
    gated = p.silu_gate(h, w.ffn_gate, w.ffn_up, out="gated", consumers=(w.ffn_down,))  # (T, F)
    return p.matmul(gated, w.ffn_down, out="o")  # (T, D)


def linear(p: Program, x: Buffer, w: LayerWeights, role: str, *, out: str) -> Buffer:
    """out = x weight^T, plus the bias where there is one."""
    y, bias = p.matmul(x, getattr(w, role), out=out), w.get(f"{role}_bias")
    return y if bias is None else p.add_bias(y, bias)


def _of_layer(config: Config, i: int) -> Iterator[TensorSpec]:
    shapes, paired = matrix_shapes(config, i), {"attn_q": config.n_heads, "attn_k": config.layers[i].n_kv_heads}
    for module, role in MATRICES.items():
        yield TensorSpec(role, shapes[role], f"layers.{i}.{module}.weight", i, paired_heads=paired.get(role, 0))
    for module, role in ATTENTION.items():
        yield TensorSpec(
            role, shapes[role][:1], f"layers.{i}.{module}.bias", i,
            optional=True, part="bias", paired_heads=paired.get(role, 0),
        )  # fmt: skip
    for module, role in PRE_NORMS.items():
        yield TensorSpec(role, (config.d_model,), f"layers.{i}.{module}.weight", i)
