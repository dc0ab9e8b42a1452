"""Gemma 4 (text): its tensors, and the forward pass of all its sizes. Knows no files, threads or instruction sets.

T: rows of a step, D: model width, F: feed-forward width, H x d: query heads, K x d: key-value heads, V: vocabulary,
L: layers, P: width of the per-layer embeddings that the small sizes have, E: experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.models.architecture import Config
from edge_gemma.models.gemma import feed_forward
from edge_gemma.models.gemma4_config import Gemma4Config
from edge_gemma.models.layer_modules import MATRICES, PRE_AND_POST_NORMS, QK_NORMS
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT, TensorSpec
from edge_gemma.models.weights import LayerWeights, Weights

PER_LAYER_MATRICES = {"per_layer_input_gate": "inp_gate", "per_layer_projection": "proj"}
ROUTER = {"router.proj": "ffn_gate_inp"}
EXPERT_NORMS = {
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}
PER_LAYER_NORM = {"post_per_layer_input_norm": "post_norm"}


class Gemma4(Gemma4Config):
    """E2B, E4B, 12B, 31B and 26B-A4B."""

    matrices: Mapping[str, str] = MATRICES | PER_LAYER_MATRICES | ROUTER

    # ---- tensors -------------------------------------------------------------------------------------------------

    def tensors(self, config: Config) -> list[TensorSpec]:
        """The tables, then each layer's matrices and norms."""
        D, V, L = config.d_model, config.vocab_size, len(config.layers)
        return [
            *_rope_factors(config),
            TensorSpec("token_embd", (V, D), HF_EMBEDDING),
            TensorSpec("output", (V, D), HF_OUTPUT, optional=True),
            *_per_layer_tables(config),
            *(spec for i in range(L) for spec in _of_layer(config, i)),
            TensorSpec("output_norm", (D,), "norm.weight"),
        ]

    def unused_tensors(self, config: Config) -> list[TensorSpec]:
        """Keys and values of layers that attend to another's: checkpoints and files hold them, nothing reads them."""
        sharing = [i for i, layer in enumerate(config.layers) if layer.shared_with is not None]
        return [spec for i in sharing for spec in _of_keys_and_values(config, i)]

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the last layer's output, (T, D)."""
        own = iter(caches)
        cache_of: list[LayerCache] = []  # of each layer; the last ones share an earlier layer's keys and values
        x = p.embed(weights.token_embd, config.embedding_scale, out="x")  # (T, D)
        P = config.per_layer_input
        inputs = per_layer_inputs(p, config, weights, x) if P else None  # (T, L P)
        for i, (layer, w) in enumerate(zip(config.layers, weights.layers, strict=True)):
            cache_of.append(next(own) if layer.shared_with is None else cache_of[layer.shared_with])
            rope = layer.rope if layer.window else replace(layer.rope, factors=weights.rope_factors)
            attended = attention(p, config, replace(layer, rope=rope), w, cache_of[i], x)
            p.add_norm(x, attended, w.post_attention_norm, config.rms_eps)
            fed = feed_forward(p, config, w, x) if config.experts is None else mixture_of_experts(p, config, w, x)
            output_scale = w.get("layer_output_scale")  # of the whole layer: at its last sum
            p.add_norm(x, fed, w.post_ffw_norm, config.rms_eps, factor=None if inputs else output_scale)
            if inputs:
                gated = per_layer_input(p, w, x, inputs.part(i * P, P))
                p.add_norm(x, gated, w.post_norm, config.rms_eps, factor=output_scale)
        return x


def per_layer_inputs(p: Program, config: Config, weights: Weights, x: Buffer) -> Buffer:
    """Per-layer embeddings, (T, L P): a projection of the token's embedding x, normed, plus a row of their own table.

    EmbeddingGemma 2 has no table. What is projected is x / sqrt(D); the norm of a multiple is the same but for epsilon.
    """
    P, tables = config.per_layer_input, weights.outside
    table = tables.get("per_layer_token_embd")
    looked_up = p.embed(table, math.sqrt(P), out="per-layer embedding") if table else None  # (T, L P)
    projected = p.matmul(x, tables.per_layer_model_proj, out="per-layer projection")  # (T, L P)
    epsilon, scale = config.rms_eps * config.d_model, 1 / math.sqrt(2) if table else 1.0
    norm = tables.per_layer_proj_norm
    return p.head_norm(projected, P, epsilon, weight=norm, base=looked_up, scale=scale, out=projected.name)


def attention(p: Program, config: Config, layer: LayerConfig, w: LayerWeights, cache: LayerCache, x: Buffer) -> Buffer:
    """Grouped-query attention, over the window on local layers, with an earlier layer's keys and values or its own.

    Queries and keys have norms with weights, values one without. Scores are not divided by sqrt(d).
    """
    eps, shared = config.rms_eps, layer.shared_with is not None
    v_weight = w.get("attn_v")
    consumers = (w.attn_q,) if shared else (w.attn_q, w.attn_k, *((v_weight,) if v_weight else ()))
    h = p.rms_norm(x, w.attn_norm, eps, out="h", consumers=consumers)  # (T, D)
    q = p.matmul(h, w.attn_q, out="q")  # (T, H d)
    p.rotate(q, layer.rope, norm=w.attn_q_norm, epsilon=eps, scale=config.attn_scale)
    if not shared:
        k = p.matmul(h, w.attn_k, out="k")  # (T, K d)
        values = p.matmul(h, v_weight, out="v") if v_weight else k  # K = V: before norm and rotation
        v = p.head_norm(values, layer.head_dim, eps, out="normed v")  # (T, K d)
        p.rotate(k, layer.rope, norm=w.attn_k_norm, epsilon=eps, scale=1.0)
        p.append(cache, k, v)
    a = p.attend(
        cache, q, window=layer.window, ahead=layer.ahead, softcap=None, out="a", consumers=(w.attn_output,)
    )  # (T, H d)
    return p.matmul(a, w.attn_output, out="o")  # (T, D)


def mixture_of_experts(p: Program, config: Config, w: LayerWeights, x: Buffer) -> Buffer:
    """A dense feed-forward part and a mixture of experts side by side, each with norms of its own, added.

    The router's input is x / rms(x) times weights of its own and D^-1/2.
    """
    assert config.experts is not None
    eps, D = config.rms_eps, config.d_model
    dense = p.rms_norm(feed_forward(p, config, w, x), w.post_ffw_norm_1, eps, out="dense part", consumers=())  # (T, D)
    z = p.head_norm(x, D, eps, weight=w.ffn_gate_inp_scale, scale=1 / math.sqrt(D), out="router input")  # (T, D)
    logits = p.matmul(z, w.ffn_gate_inp, out="router logits")  # (T, E)
    routed = p.route(logits, config.experts.used, factor=1.0, scales=w.get("ffn_down_exps_scale"))
    gate_up = (w.ffn_gate_up_exps,) if config.experts.fused else (w.ffn_gate_exps, w.ffn_up_exps)
    h = p.rms_norm(x, w.pre_ffw_norm_2, eps, out="experts' input", consumers=gate_up)  # (T, D)
    mixed = p.experts(h, routed, gate_up, w.ffn_down_exps, out="experts' sum")  # (T, D)
    return p.add_norm(dense, mixed, w.post_ffw_norm_2, eps)


def per_layer_input(p: Program, w: LayerWeights, x: Buffer, embedding: Buffer) -> Buffer:
    """The layer's own embedding of each token, (T, P), through a gate that x opens, and projected to (T, D)."""
    gate = p.matmul(x, w.inp_gate, out="input gate")  # (T, P)
    u = p.gelu_times(gate, embedding, out="gated input", consumers=(w.proj,))  # (T, P)
    return p.matmul(u, w.proj, out="o")  # (T, D)


def _rope_factors(config: Config) -> Iterator[TensorSpec]:
    """What divides the frequencies of global layers; a checkpoint has it in its configuration."""
    layer = config.of_kind(local=False)
    if layer is not None:
        yield TensorSpec("rope_freqs", (layer.head_dim // 2,), "", values=layer.rope.factors)


def _per_layer_tables(config: Config) -> Iterator[TensorSpec]:
    D, V, P, L = config.d_model, config.vocab_size, config.per_layer_input, len(config.layers)
    if P:
        yield TensorSpec("per_layer_token_embd", (V, L * P), "embed_tokens_per_layer.weight")
        yield TensorSpec("per_layer_model_proj", (L * P, D), "per_layer_model_projection.weight")
        yield TensorSpec("per_layer_proj_norm", (P,), "per_layer_projection_norm.weight")


def _of_layer(config: Config, i: int) -> Iterator[TensorSpec]:
    layer, D = config.layers[i], config.d_model
    F, d, q = layer.d_ff, layer.head_dim, config.n_heads * layer.head_dim
    yield _weight(i, "self_attn.q_proj", (q, D))
    if layer.shared_with is None:
        yield from (
            spec for spec in _of_keys_and_values(config, i) if not (spec.role == "attn_v" and layer.keys_are_values)
        )
    yield _weight(i, "self_attn.o_proj", (D, q))
    yield _weight(i, "self_attn.q_norm", (d,))
    yield _weight(i, "mlp.gate_proj", (F, D))
    yield _weight(i, "mlp.up_proj", (F, D))
    yield _weight(i, "mlp.down_proj", (D, F))
    yield from (_weight(i, module, (D,)) for module in PRE_AND_POST_NORMS)
    yield from _of_experts(config, i)
    if P := config.per_layer_input:
        yield _weight(i, "per_layer_input_gate", (P, D))
        yield _weight(i, "per_layer_projection", (D, P))
        yield _weight(i, "post_per_layer_input_norm", (D,))
    yield TensorSpec("layer_output_scale", (1,), f"layers.{i}.layer_scalar", i, optional=True)


def _of_keys_and_values(config: Config, i: int) -> Iterator[TensorSpec]:
    layer, D = config.layers[i], config.d_model
    kv = layer.n_kv_heads * layer.head_dim
    yield _weight(i, "self_attn.k_proj", (kv, D))
    yield _weight(i, "self_attn.v_proj", (kv, D))
    yield _weight(i, "self_attn.k_norm", (layer.head_dim,))


def _of_experts(config: Config, i: int) -> Iterator[TensorSpec]:
    experts, D = config.experts, config.d_model
    if experts is None:
        return
    E, F = experts.count, experts.d_ff
    yield TensorSpec("ffn_gate_inp", (E, D), f"layers.{i}.router.proj.weight", i)
    yield TensorSpec("ffn_gate_inp", (D,), f"layers.{i}.router.scale", i, part="scale")
    if experts.fused:
        yield TensorSpec("ffn_gate_up_exps", (E, 2 * F, D), f"layers.{i}.experts.gate_up_proj", i)
    else:
        yield TensorSpec("ffn_gate_exps", (E, F, D), f"layers.{i}.experts.gate_proj", i)
        yield TensorSpec("ffn_up_exps", (E, F, D), f"layers.{i}.experts.up_proj", i)
    yield TensorSpec("ffn_down_exps", (E, D, F), f"layers.{i}.experts.down_proj", i)
    yield TensorSpec("ffn_down_exps", (E,), f"layers.{i}.router.per_expert_scale", i, optional=True, part="scale")
    yield from (_weight(i, module, (D,)) for module in EXPERT_NORMS)


_ROLES = MATRICES | PER_LAYER_MATRICES | ROUTER | PRE_AND_POST_NORMS | QK_NORMS | EXPERT_NORMS | PER_LAYER_NORM


def _weight(i: int, module: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(_ROLES[module], shape, f"layers.{i}.{module}.weight", i)
