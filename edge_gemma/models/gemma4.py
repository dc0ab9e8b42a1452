"""Gemma 4 (text): its tensors, and the forward pass of all its sizes. Knows no files, threads or instruction sets.

T: rows of a step, D: model width, F: feed-forward width, H x d: query heads, K x d: key-value heads, V: vocabulary,
P: width of what a layer is given of a token beside the stream, L: layers, E: experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program, Rows
from edge_gemma.models.architecture import Config
from edge_gemma.models.gemma4_config import Gemma4Config
from edge_gemma.models.tensor_table import HF_EMBEDDING, HF_OUTPUT, TensorSpec
from edge_gemma.models.weights import Weights

MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PER_LAYER_MATRICES = {"per_layer_input_gate": "inp_gate", "per_layer_projection": "proj"}
ROUTER = {"router.proj": "ffn_gate_inp"}
NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
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

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Rows:
        """Tokens to the last layer's output, (T, D)."""
        raise NotImplementedError

    def record_logits(self, p: Program, config: Config, weights: Weights, x: Rows, logits: Rows) -> None:
        """The last layer's output to logits, (T, V)."""
        raise NotImplementedError


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
    yield from (_weight(i, module, (D,)) for module in NORMS)
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
    yield _weight(i, "router.proj", (E, D))
    yield TensorSpec("ffn_gate_inp", (D,), f"layers.{i}.router.scale", i, part="scale")
    if experts.fused:
        yield TensorSpec("ffn_gate_up_exps", (E, 2 * F, D), f"layers.{i}.experts.gate_up_proj", i)
    else:
        yield TensorSpec("ffn_gate_exps", (E, F, D), f"layers.{i}.experts.gate_proj", i)
        yield TensorSpec("ffn_up_exps", (E, F, D), f"layers.{i}.experts.up_proj", i)
    yield TensorSpec("ffn_down_exps", (E, D, F), f"layers.{i}.experts.down_proj", i)
    yield TensorSpec("ffn_down_exps", (E,), f"layers.{i}.router.per_expert_scale", i, optional=True, part="scale")
    yield from (_weight(i, module, (D,)) for module in EXPERT_NORMS)


_ROLES = MATRICES | PER_LAYER_MATRICES | ROUTER | NORMS | HEAD_NORMS | EXPERT_NORMS | PER_LAYER_NORM


def _weight(i: int, module: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(_ROLES[module], shape, f"layers.{i}.{module}.weight", i)
