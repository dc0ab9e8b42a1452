"""Small random checkpoints of the Llama family, each there for some feature; drawn as those of `cases.py`. NumPy only.

Written down apart from the code on purpose: names, the order of rows that llama.cpp's converter makes, and the factors
of Llama 3's rotation are here a second time. Knows no runtime and no recorded result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from bench.synthetic import add_tokenizer
from tests.goldens.cases import Floats, add_matrix, draw, encode, finish, tokenizer_json


@dataclass(frozen=True)
class LlamaCase:
    """One checkpoint. window: makes it Mistral's class; scaling: of the rotation, as in a config.json."""

    name: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 263
    window: int | None = None
    tied: bool = False
    biased: bool = False
    rope_base: float = 10000.0
    scaling: tuple[tuple[str, Any], ...] = ()
    query_key_gain: float = 1.5
    logit_gain: float = 6.0
    branch_gain: float = 3.0
    lengths: tuple[int, ...] = (61,)
    seed: int = 1
    architecture: str = "llama"


_LLAMA_3 = (
    ("rope_type", "llama3"),
    ("factor", 8.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 64),
)
_LINEAR = (("rope_type", "linear"), ("factor", 4.0))

CASES: dict[str, LlamaCase] = {
    c.name: c
    for c in (
        LlamaCase("llama-smol", 3, 192, 512, 6, 2, 32, tied=True, rope_base=1e5, lengths=(61, 1)),
        LlamaCase("llama-sheared", 2, 128, 352, 2, 2, 64, vocab=301),
        LlamaCase("llama-biased", 2, 96, 192, 4, 2, 32, biased=True),
        LlamaCase("llama-3", 2, 128, 256, 4, 2, 64, tied=True, rope_base=1e4, scaling=_LLAMA_3, lengths=(129,), seed=2),
        LlamaCase("llama-linear", 2, 64, 96, 2, 1, 32, scaling=_LINEAR),
        LlamaCase("danube-1", 3, 160, 320, 8, 2, 80, window=13),
        LlamaCase("danube-3", 2, 96, 256, 4, 1, 120, rope_base=1e5, lengths=(37,)),
        LlamaCase("mistral-wide", 2, 128, 256, 4, 2, 32, window=4096),
        LlamaCase("llama-head-8", 2, 64, 96, 4, 2, 8, biased=True),
        LlamaCase("llama-head-16", 2, 64, 96, 4, 1, 16, tied=True, lengths=(33,)),
        LlamaCase("llama-head-24", 2, 64, 96, 4, 2, 24, scaling=_LLAMA_3, lengths=(70,)),
        LlamaCase("llama-256", 2, 256, 512, 16, 4, 80, vocab=512, query_key_gain=1.0, branch_gain=1.5),
    )
}
"""By name. The last one has every width a multiple of 256, so that all block formats fit."""

MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_NAMES = MATRICES | {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name: str) -> str:
    """GGUF's name of the Hugging Face tensor `name`."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, part = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{part}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.{part}"


def _shapes(case: LlamaCase) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and size of every tensor of the checkpoint; see `draw`."""
    c, q, kv = case, case.heads * case.head_dim, case.kv_heads * case.head_dim
    yield "model.embed_tokens.weight", (c.vocab, c.width), 1.0
    if not c.tied:
        yield "lm_head.weight", (c.vocab, c.width), c.width**-0.5
    yield "model.norm.weight", (c.width,), c.logit_gain * (c.width**-0.5 if c.tied else 1.0)
    matrices = {
        "self_attn.q_proj": (q, c.width, c.query_key_gain),
        "self_attn.k_proj": (kv, c.width, c.query_key_gain),
        "self_attn.v_proj": (kv, c.width, 1.0),
        "self_attn.o_proj": (c.width, q, c.branch_gain),
        "mlp.gate_proj": (c.hidden, c.width, 1.0),
        "mlp.up_proj": (c.hidden, c.width, 1.0),
        "mlp.down_proj": (c.width, c.hidden, c.branch_gain),
    }
    for i in range(c.layers):
        p = f"model.layers.{i}."
        for module, (rows, columns, gain) in matrices.items():
            yield f"{p}{module}.weight", (rows, columns), gain * columns**-0.5
            if c.biased and "attn" in module:
                yield f"{p}{module}.bias", (rows,), 1.0
        yield p + "input_layernorm.weight", (c.width,), 1.0
        yield p + "post_attention_layernorm.weight", (c.width,), 1.0


def weights(case: LlamaCase) -> dict[str, Floats]:
    """Every tensor of the checkpoint under its Hugging Face name."""
    return {name: _drawn(case, name, shape, size) for name, shape, size in _shapes(case)}


def _drawn(case: LlamaCase, name: str, shape: tuple[int, ...], size: float) -> Floats:
    if name.endswith(".bias"):
        return draw(case, name, (1, *shape), size)[0]
    return draw(case, name, shape, size)


def config(case: LlamaCase, *, transformers: int = 5) -> dict[str, Any]:
    """config.json as transformers 4 or 5 writes it."""
    c = case
    out: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if c.window else "LlamaForCausalLM"],
        "model_type": "mistral" if c.window else "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": c.tied,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "dtype" if transformers >= 5 else "torch_dtype": "float32",
    }
    out |= {"sliding_window": c.window} if c.window else {"attention_bias": c.biased, "mlp_bias": False}
    if transformers >= 5:
        return out | {"rope_parameters": {"rope_theta": c.rope_base, "rope_type": "default", **dict(c.scaling)}}
    return out | {"rope_theta": c.rope_base, "rope_scaling": dict(c.scaling) or None}


def write_checkpoint(case: LlamaCase, folder: Path, *, transformers: int = 5) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(case, transformers=transformers), indent=2), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(case.vocab), ensure_ascii=False), "utf-8")
    save_file(weights(case), folder / "model.safetensors", metadata={"format": "pt"})


def in_pairs(values: Floats, heads: int) -> Floats:
    """Rows of queries or keys, or their biases, in the order of GGUF files: halves of a head become neighbours."""
    return np.ascontiguousarray(values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def factors_of_llama_3(case: LlamaCase) -> Floats | None:
    """What divides the frequency of each pair, by the formula of transformers in float64."""
    said = dict(case.scaling)
    if said.get("rope_type") != "llama3":
        return None
    low, high, old = said["low_freq_factor"], said["high_freq_factor"], said["original_max_position_embeddings"]
    frequency = case.rope_base ** (-np.arange(0, case.head_dim, 2) / case.head_dim)
    turns = old * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / said["factor"] + smooth)).astype(np.float32)


def write_gguf(case: LlamaCase, path: Path, format: str = "F32", *, dequantized: bool = False) -> None:
    """Write the case to `path`, as `cases.write_gguf` does."""
    writer = gguf.GGUFWriter(path, case.architecture)
    _add_metadata(writer, case)
    add_tokenizer(writer, case.vocab)
    if (factors := factors_of_llama_3(case)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    heads = {"q_proj": case.heads, "k_proj": case.kv_heads}
    for name, drawn in weights(case).items():
        module = name.split(".")[-2]
        values = in_pairs(drawn, heads[module]) if module in heads else drawn
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            add_matrix(writer, gguf_name(name), encode(case, name, values, format), format, dequantized)
    finish(writer)


def _add_metadata(writer: gguf.GGUFWriter, c: LlamaCase) -> None:
    """As llama.cpp's converter, and the window."""
    writer.add_type("model")
    writer.add_name(c.name)
    writer.add_block_count(c.layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    if c.head_dim * c.heads != c.width:
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    writer.add_vocab_size(c.vocab)
    writer.add_rope_dimension_count(c.head_dim)
    if c.scaling == _LINEAR:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(dict(c.scaling)["factor"])
    if c.window is not None:
        writer.add_uint32("edge_gemma.attention.sliding_window", c.window)
    writer.add_quantization_version(2)
