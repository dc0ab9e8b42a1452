"""Small random Gemma 4 checkpoints, each there for some feature; made as those of `cases.py`, and of the same numbers.

    weights(case)                                 Hugging Face name -> float32 array
    write_checkpoint(case, folder)                config.json, model.safetensors, tokenizer.json
    write_gguf(case, path, format="F32")          the same model as GGUF; `dequantized=True` for its float32 twin

No parameter is left at ones or zeros, where an error would hide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from bench.synthetic import add_tokenizer
from tests.goldens.cases import Floats, add_matrix, draw, encode, finish, tokenizer_json

EXPERTS = ("ffn_gate_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class Gemma4Case:
    """One checkpoint. `global_` sizes are those of global layers; gains multiply usual weight sizes."""

    name: str
    local: str  # one letter per layer: L local, G global
    width: int
    hidden: int
    heads: int
    kv_heads: int
    global_kv_heads: int
    head_dim: int
    global_head_dim: int
    vocab: int = 263
    window: int = 8
    shared: int = 0  # of the last layers, which attend to keys and values of earlier ones
    dead: bool = False  # these have keys and values all the same, which nothing reads
    double: bool = False  # these are twice as wide
    single: bool = False  # values of global layers are made as keys are
    per_layer: int = 0  # width of the input of each layer
    experts: int = 0
    used: int = 2
    expert_hidden: int = 32
    tied: bool = True
    final_cap: float | None = 30.0
    turning: float = 0.25  # part of a head that rotates in global layers
    rope_base: float = 1e6
    rope_local_base: float = 1e4
    query_key_gain: float = 0.5
    logit_gain: float = 8.0
    branch_gain: float = 1.0
    layer_scale: float = 0.8
    lengths: tuple[int, ...] = (61,)
    seed: int = 1

    architecture = "gemma4"

    @property
    def layers(self) -> int:
        return len(self.local)

    @property
    def layer_types(self) -> list[str]:
        return ["sliding_attention" if kind == "L" else "full_attention" for kind in self.local]

    def head(self, layer: int) -> int:
        """Its size."""
        return self.head_dim if self.local[layer] == "L" else self.global_head_dim

    def kv(self, layer: int) -> int:
        """Rows of its keys."""
        heads = self.kv_heads if self.local[layer] == "L" else self.global_kv_heads
        return heads * self.head(layer)

    @property
    def old(self) -> bool:
        """The old keys can say it: they give global layers heads of another number only where `single`."""
        return self.single or self.kv_heads == self.global_kv_heads

    def shares(self, layer: int) -> bool:
        return layer >= self.layers - self.shared

    def wide(self, layer: int) -> int:
        """Width of its feed-forward part."""
        return 2 * self.hidden if self.double and self.shares(layer) else self.hidden


_CALM: dict[str, Any] = {"query_key_gain": 0.3, "branch_gain": 0.5, "logit_gain": 4.0}  # amplifies rounding least

GEMMA4_CASES: dict[str, Gemma4Case] = {
    c.name: c
    for c in (
        Gemma4Case(
            "gemma4-e2b", "LLGLLGLLG", 96, 160, 4, 1, 1, 32, 64,
            window=12, shared=3, dead=True, double=True, per_layer=32, lengths=(61, 1),
        ),
        # the last layer with keys of its own is local
        Gemma4Case("gemma4-e4b", "LLLLLGLLLLLG", 64, 128, 8, 2, 2, 32, 64, window=9, shared=5, per_layer=64),
        Gemma4Case(
            "gemma4-12b", "LLLLLGLLLLLG", 128, 192, 8, 4, 1, 32, 96,
            window=13, single=True, logit_gain=14.0, vocab=301,
        ),
        Gemma4Case(
            "gemma4-26b", "LLGLLG", 96, 160, 4, 2, 1, 32, 64,
            window=12, single=True, experts=8, expert_hidden=64, lengths=(61, 2), seed=2,
        ),
        Gemma4Case(
            "gemma4-untied", "LGLG", 64, 96, 4, 4, 2, 64, 32,
            tied=False, final_cap=None, turning=0.5, lengths=(33,),
        ),
        Gemma4Case(
            "gemma4-256", "LLGLG", 256, 512, 4, 2, 1, 64, 128,
            vocab=320, window=16, shared=2, per_layer=256, **_CALM,
        ),
        Gemma4Case(
            "gemma4-moe-256", "LLGLG", 256, 512, 4, 2, 1, 64, 128,
            vocab=320, window=16, single=True, experts=16, expert_hidden=256, **_CALM,
        ),
    )
}  # fmt: skip
"""By name. Those ending in -256 have every width a multiple of 256, so that all block formats fit."""

GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "norm": "output_norm",
    "lm_head": "output",
}
GGUF_LAYER_NAMES = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
}


def gguf_name(name: str) -> str:
    """GGUF's name of the Hugging Face tensor `name`."""
    short = name.removeprefix("model.")
    if not short.startswith("layers."):
        return f"{GGUF_NAMES[short.removesuffix('.weight')]}.weight"
    _, layer, part = short.split(".", 2)
    return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}"


def _shapes(c: Gemma4Case) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and standard deviation (for vectors: the mean) of every tensor of the checkpoint."""
    yield "model.embed_tokens.weight", (c.vocab, c.width), c.width**-0.5
    if not c.tied:
        yield "lm_head.weight", (c.vocab, c.width), c.width**-0.5
    yield "model.norm.weight", (c.width,), c.logit_gain
    if c.per_layer:
        all_layers = c.layers * c.per_layer
        yield "model.embed_tokens_per_layer.weight", (c.vocab, all_layers), c.per_layer**-0.5
        yield "model.per_layer_model_projection.weight", (all_layers, c.width), 1.0
        yield "model.per_layer_projection_norm.weight", (c.per_layer,), 1.0
    for i in range(c.layers):
        for name, shape, size in _layer(c, i):
            yield f"model.layers.{i}.{name}", shape, size


def _layer(c: Gemma4Case, i: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
    d, head, q, kv, hidden = c.width, c.head(i), c.heads * c.head(i), c.kv(i), c.wide(i)
    usual = d**-0.5
    yield "self_attn.q_proj.weight", (q, d), usual
    yield "self_attn.q_norm.weight", (head,), c.query_key_gain
    if not c.shares(i) or c.dead:
        yield "self_attn.k_proj.weight", (kv, d), usual
        yield "self_attn.k_norm.weight", (head,), c.query_key_gain
        if not (c.single and c.local[i] == "G"):
            yield "self_attn.v_proj.weight", (kv, d), usual
    yield "self_attn.o_proj.weight", (d, q), q**-0.5
    yield "mlp.gate_proj.weight", (hidden, d), usual
    yield "mlp.up_proj.weight", (hidden, d), usual
    yield "mlp.down_proj.weight", (d, hidden), hidden**-0.5
    yield "input_layernorm.weight", (d,), 1.0
    yield "post_attention_layernorm.weight", (d,), c.branch_gain
    yield "pre_feedforward_layernorm.weight", (d,), 1.0
    yield "post_feedforward_layernorm.weight", (d,), c.branch_gain
    yield "layer_scalar", (1,), c.layer_scale
    if c.experts:
        wide = c.expert_hidden
        yield "router.proj.weight", (c.experts, d), 1.5
        yield "router.scale", (d,), 1.0
        yield "router.per_expert_scale", (c.experts,), 1.0
        yield "experts.gate_up_proj", (c.experts, 2 * wide, d), usual
        yield "experts.down_proj", (c.experts, d, wide), wide**-0.5
        yield "post_feedforward_layernorm_1.weight", (d,), 1.0
        yield "pre_feedforward_layernorm_2.weight", (d,), 1.3
        yield "post_feedforward_layernorm_2.weight", (d,), 1.0
    if c.per_layer:
        yield "per_layer_input_gate.weight", (c.per_layer, d), usual
        yield "per_layer_projection.weight", (d, c.per_layer), c.per_layer**-0.5
        yield "post_per_layer_input_norm.weight", (d,), c.branch_gain


def shapes(case: Gemma4Case) -> dict[str, tuple[int, ...]]:
    """Of every tensor of the checkpoint."""
    return {name: shape for name, shape, _ in _shapes(case)}


def weights(case: Gemma4Case) -> dict[str, Floats]:
    """Every tensor of the checkpoint under its Hugging Face name."""
    return {name: draw(case, name, shape, size) for name, shape, size in _shapes(case)}


def text_config(c: Gemma4Case, *, old: bool = False) -> dict[str, Any]:
    """The text model's part of config.json as transformers 5.24 writes it, or with the old keys of global layers."""
    rope = {
        "full_attention": {"partial_rotary_factor": c.turning, "rope_theta": c.rope_base, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": c.rope_local_base, "rope_type": "default"},
    }
    out: dict[str, Any] = {
        "model_type": "gemma4_text",
        "vocab_size": c.vocab,
        "vocab_size_per_layer_input": c.vocab,
        "hidden_size": c.width,
        "hidden_size_per_layer_input": c.per_layer,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "attention_k_eq_v": c.single,
        "num_kv_shared_layers": c.shared,
        "use_double_wide_mlp": c.double,
        "layer_types": c.layer_types,
        "sliding_window": c.window,
        "rope_parameters": rope,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": c.final_cap,
        "tie_word_embeddings": c.tied,
        "use_bidirectional_attention": None,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "enable_moe_block": bool(c.experts),
        "num_experts": c.experts or None,
        "top_k_experts": c.used if c.experts else None,
        "moe_intermediate_size": c.expert_hidden if c.experts else None,
        "dtype": "float32",
    }
    return out | (_global_heads_old(c) if old else {"per_layer_config": _global_heads(c)})


def _global_heads(c: Gemma4Case) -> dict[str, Any]:
    own: dict[str, int] = {}
    if c.global_head_dim != c.head_dim:
        own["head_dim"] = c.global_head_dim
    if c.global_kv_heads != c.kv_heads:
        own["num_key_value_heads"] = c.global_kv_heads
    digits = len(str(c.layers - 1))  # transformers fills keys with zeros
    return {f"{i:0{digits}}": own for i, kind in enumerate(c.local) if kind == "G"}


def _global_heads_old(c: Gemma4Case) -> dict[str, Any]:
    """Heads of their own are there with `attention_k_eq_v` alone."""
    return {
        "global_head_dim": c.global_head_dim,
        "num_global_key_value_heads": c.global_kv_heads if c.single else None,
    }


def config(case: Gemma4Case, *, old: bool = False, wrapped: bool = False) -> dict[str, Any]:
    """config.json, of the text model or, `wrapped`, of the one that sees and hears, too."""
    text = text_config(case, old=old)
    if not wrapped:
        return {"architectures": ["Gemma4ForCausalLM"]} | text
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": text}
    return outer | {"tie_word_embeddings": case.tied}


def write_checkpoint(case: Gemma4Case, folder: Path, *, old: bool = False, wrapped: bool = False) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(case, old=old, wrapped=wrapped), indent=2), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(case.vocab), ensure_ascii=False), "utf-8")
    tensors = weights(case)
    if wrapped:
        tensors = {name.replace("model.", "model.language_model.", 1): values for name, values in tensors.items()}
        towers = (
            "vision_tower.patch_embedder.input_proj",
            "audio_tower.output_proj",
            "embed_vision.embedding_projection",
        )
        tensors |= {f"model.{name}.weight": np.ones((32, 32), np.float32) for name in towers}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_gguf(
    case: Gemma4Case,
    path: Path,
    format: str = "F32",
    *,
    dequantized: bool = False,
    split_experts: bool = False,
    without: tuple[str, ...] = (),
    ones: tuple[str, ...] = (),
) -> None:
    """Write the case to `path` with every matrix in `format`, as `cases.write_gguf` does; the router and the projection
    of per-layer inputs stay F32.

    split_experts: gate and up of experts apart. without: roles of tensors to leave out. ones: those to fill with ones.
    """
    writer = gguf.GGUFWriter(path, case.architecture)
    add_metadata(writer, case)
    add_tokenizer(writer, case.vocab)
    turning = int(case.turning * case.global_head_dim // 2)
    factors = [1.0] * turning + [1e30] * (case.global_head_dim // 2 - turning)
    tensors = {"rope_freqs.weight": np.array(factors, np.float32)}
    tensors |= {gguf_name(name): values for name, values in weights(case).items()}
    if split_experts:
        tensors = dict(_split(tensors))
    for name, drawn in tensors.items():
        if any(role in name.split(".") for role in without):
            continue
        values = np.ones_like(drawn) if any(role in name.split(".") for role in ones) else drawn
        if values.ndim == 1 or "ffn_gate_inp" in name or "per_layer_model_proj" in name:
            writer.add_tensor(name, values)
        else:
            add_matrix(writer, name, encode(case, name, values, format), format, dequantized)
    finish(writer)


def _split(tensors: dict[str, Floats]) -> Iterator[tuple[str, Floats]]:
    for name, values in tensors.items():
        if "ffn_gate_up_exps" in name:
            gate, up = np.split(values, 2, axis=1)
            yield name.replace("gate_up", "gate"), np.ascontiguousarray(gate)
            yield name.replace("gate_up", "up"), np.ascontiguousarray(up)
        else:
            yield name, values


def add_metadata(writer: gguf.GGUFWriter, c: Gemma4Case) -> None:
    writer.add_type("model")
    writer.add_name(c.name)
    writer.add_block_count(c.layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(c.width)
    hidden = [c.wide(i) for i in range(c.layers)]
    writer.add_feed_forward_length(hidden if c.double else c.hidden)
    writer.add_head_count(c.heads)
    kv_heads = [c.kv(i) // c.head(i) for i in range(c.layers)]
    writer.add_head_count_kv(kv_heads if len(set(kv_heads)) > 1 else kv_heads[0])
    writer.add_rope_freq_base(c.rope_base)
    writer.add_float32(f"{writer.arch}.rope.freq_base_swa", c.rope_local_base)
    writer.add_layer_norm_rms_eps(1e-6)
    if c.experts:
        writer.add_expert_count(c.experts)
        writer.add_expert_used_count(c.used)
        writer.add_expert_feed_forward_length(c.expert_hidden)
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        writer.add_uint32(f"{writer.arch}.{name}", c.global_head_dim)
        writer.add_uint32(f"{writer.arch}.{name}_swa", c.head_dim)
    writer.add_final_logit_softcapping(c.final_cap or 0.0)  # llama.cpp takes a missing one for 30
    writer.add_sliding_window(c.window)
    writer.add_uint32(f"{writer.arch}.attention.shared_kv_layers", c.shared)
    writer.add_uint32(f"{writer.arch}.embedding_length_per_layer_input", c.per_layer)
    writer.add_array(f"{writer.arch}.attention.sliding_window_pattern", [kind == "L" for kind in c.local])
    writer.add_quantization_version(2)
