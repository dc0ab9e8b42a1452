"""The forward pass of Gemma 1, 2 and 3, recorded once when a model is opened.

Reads like the papers (arXiv:2403.08295, 2408.00118, 2503.19786). Knows no files, threads, instruction sets or
sampling. T: rows of a step, D: model width, F: feed-forward width, H x d: query heads, K x d: key-value heads,
V: vocabulary.
"""

from __future__ import annotations

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program, Rows
from edge_gemma.models.config import GemmaConfig
from edge_gemma.models.weights import LayerWeights, Weights


def record(p: Program, config: GemmaConfig, weights: Weights, caches: list[LayerCache]) -> Rows:
    """Tokens to the last layer's output, (T, D)."""
    x = p.embed(weights.token_embd, config.embedding_scale, out="x")  # (T, D)
    for i, w in enumerate(weights.layers):
        attended = attention(p, config, w, caches[i], x, i)
        residual(p, config, x, attended, w.post_attention_norm)
        residual(p, config, x, feed_forward(p, config, w, x), w.post_ffw_norm)
    return x


def record_logits(p: Program, config: GemmaConfig, weights: Weights, x: Rows, logits: Rows) -> None:
    """The last layer's output to logits, (T, V), written to `logits`."""
    h = p.rms_norm(x, weights.output_norm, config.rms_eps, out="h", takers=(weights.output,))  # (T, D)
    p.matmul(h, weights.output, out=logits.name, rows=logits)  # (T, V)
    if config.final_softcap is not None:
        p.softcap(logits, config.final_softcap)


def attention(p: Program, config: GemmaConfig, w: LayerWeights, cache: LayerCache, x: Rows, layer: int) -> Rows:
    """Grouped-query attention, over the window on local layers."""
    eps, rope, window = config.rms_eps, config.rope(layer), config.states[layer].window
    h = p.rms_norm(x, w.attn_norm, eps, out="h", takers=(w.attn_q, w.attn_k, w.attn_v))  # (T, D)
    q = p.matmul(h, w.attn_q, out="q")  # (T, H d)
    k = p.matmul(h, w.attn_k, out="k")  # (T, K d)
    v = p.matmul(h, w.attn_v, out="v")  # (T, K d)
    p.rotate(q, rope, norm=w.attn_q_norm, epsilon=eps, scale=config.attn_scale)
    p.rotate(k, rope, norm=w.attn_k_norm, epsilon=eps, scale=1.0)
    p.append(cache, k, v)
    a = p.attend(cache, q, window=window, softcap=config.attn_softcap, out="a", takers=(w.attn_output,))  # (T, H d)
    return p.matmul(a, w.attn_output, out="o")  # (T, D)


def feed_forward(p: Program, config: GemmaConfig, w: LayerWeights, x: Rows) -> Rows:
    """GeGLU."""
    h = p.rms_norm(x, w.ffn_norm, config.rms_eps, out="h", takers=(w.ffn_gate, w.ffn_up))  # (T, D)
    gated = p.gelu_gate(h, w.ffn_gate, w.ffn_up, out="gated", takers=(w.ffn_down,))  # (T, F)
    return p.matmul(gated, w.ffn_down, out="o")  # (T, D)


def residual(p: Program, config: GemmaConfig, x: Rows, y: Rows, post_norm: Tensor | None) -> Rows:
    """x = x + y, or x + norm(y) where the architecture has post-norms."""
    return p.add(x, y) if post_norm is None else p.add_norm(x, y, post_norm, config.rms_eps)
