"""Modules of a layer, in the names of transformers -> the roles of their weights, where architectures agree.

Knows no file. Gemma and Llama name the same modules alike; what an architecture has beside them is in its own file.
"""

from __future__ import annotations

from edge_gemma.models.architecture import Config

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
FEED_FORWARD = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
MATRICES = ATTENTION | FEED_FORWARD

# Trap: `post_attention_layernorm` is the norm *before* the feed-forward part where there are norms before only, and the
# one *after* attention where there are both.
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
PRE_AND_POST_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
"""Of the heads of queries and keys."""


def matrix_shapes(config: Config, i: int) -> dict[str, tuple[int, int]]:
    """Role -> (rows, columns) of the matrices of layer `i`: so many outputs, and inputs."""
    layer, D = config.layers[i], config.d_model
    F, q, kv = layer.d_ff, config.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    attention = {"attn_q": (q, D), "attn_k": (kv, D), "attn_v": (kv, D), "attn_output": (D, q)}
    return attention | {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
