"""Small random Gemma checkpoints, each there for some feature of the architecture; NumPy only.

A case and its seed define every weight exactly on every platform (integers scaled to float32), so goldens recorded once
from transformers can be compared with a file written anew. Knows no runtime and no recorded result.

    weights(case)                                 Hugging Face name -> float32 array
    write_checkpoint(case, folder)                config.json, model.safetensors, tokenizer.json
    write_gguf(case, path, format="F32")          the same model as GGUF; `dequantized=True` for its float32 twin
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bench.synthetic import add_tokenizer, random_blocks, vocabulary

Floats = npt.NDArray[np.float32]


class Drawn(Protocol):
    """What decides which numbers are drawn."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Case:
    """One checkpoint. `local` says per layer whether it sees only `window` keys; gains multiply usual weight sizes."""

    name: str
    architecture: str  # gemma, gemma2, gemma3 or vaultgemma: GGUF's names
    local: str  # one letter per layer: L local, G global
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    query_scalar: int  # the query is multiplied by 1/sqrt(query_scalar)
    vocab: int = 263
    window: int = 8
    tied: bool = True
    attention_cap: float | None = None
    final_cap: float | None = None
    rope_base: float = 10000.0
    rope_local_base: float = 10000.0
    rope_factor: float = 1.0  # linear, on global layers
    query_key_gain: float = 1.5
    embedding_gain: float = 1.0
    logit_gain: float = 6.0
    branch_gain: float = 3.0
    lengths: tuple[int, ...] = (61,)
    seed: int = 1

    @property
    def layers(self) -> int:
        return len(self.local)

    @property
    def layer_types(self) -> list[str]:
        return ["sliding_attention" if kind == "L" else "full_attention" for kind in self.local]


_SOFT_CAPS: dict[str, Any] = {"attention_cap": 50.0, "final_cap": 30.0}
_BASES: dict[str, Any] = {"rope_base": 1e6, "rope_local_base": 1e4}
_CALM: dict[str, Any] = {"query_key_gain": 1.0, "branch_gain": 1.5, "embedding_gain": 1.5}  # amplifies rounding least

CASES: dict[str, Case] = {
    c.name: c
    for c in (
        Case("gemma1-mqa", "gemma", "GG", 96, 192, 4, 1, 32, 32, lengths=(37, 1)),
        Case("gemma1-mha", "gemma", "GGG", 192, 320, 3, 3, 128, 128, vocab=301),
        Case("gemma2-2b", "gemma2", "LGLG", 128, 256, 4, 2, 64, 64, **_SOFT_CAPS, lengths=(61, 2)),
        Case("gemma2-27b", "gemma2", "LGLGL", 288, 576, 8, 4, 32, 36, window=24, **_SOFT_CAPS),
        Case(
            "gemma2-caps-bite", "gemma2", "LGLG", 160, 320, 4, 4, 64, 64,
            window=13, **_SOFT_CAPS, query_key_gain=4.0, logit_gain=25.0, seed=4,
        ),
        Case("gemma2-untied", "gemma2", "LG", 96, 224, 8, 1, 32, 32, window=9, tied=False, **_SOFT_CAPS, lengths=(33,)),
        Case("gemma2-wide-head", "gemma2", "LLG", 64, 96, 2, 1, 256, 256, window=11, **_SOFT_CAPS),
        Case("gemma3-270m", "gemma3", "LLLLLGL", 160, 256, 4, 1, 256, 256, window=16, vocab=512, **_BASES),
        Case(
            "gemma3-4b", "gemma3", "LLLLLG", 128, 320, 4, 2, 64, 64,
            window=12, **_BASES, rope_factor=8.0, lengths=(129,),
        ),
        Case("gemma3-27b", "gemma3", "LLGLLG", 192, 256, 8, 1, 128, 24, window=24, **_BASES, rope_factor=8.0),
        Case("gemma3-untied", "gemma3", "LG", 96, 160, 3, 3, 32, 32, window=10, tied=False, **_BASES, lengths=(47,)),
        Case("gemma3-final-cap", "gemma3", "GL", 64, 96, 4, 2, 32, 32, final_cap=30.0, logit_gain=25.0, **_BASES),
        Case("vaultgemma-1b", "vaultgemma", "GGG", 96, 192, 4, 4, 32, 32, lengths=(61, 1), seed=2),
        Case("vaultgemma-local", "vaultgemma", "LGLG", 128, 256, 4, 2, 64, 36, window=24, **_SOFT_CAPS),
        Case("gemma2-256", "gemma2", "LG", 256, 512, 4, 2, 128, 128, window=19, vocab=512, **_SOFT_CAPS, **_CALM),
        Case("gemma3-256", "gemma3", "LLG", 256, 768, 4, 1, 256, 256, window=16, vocab=320, **_BASES, **_CALM),
    )
}  # fmt: skip
"""By name. The two ending in -256 have every width a multiple of 256, so that all block formats fit."""

CLASSES = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3", "vaultgemma": "VaultGemma"}
GGUF_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(architecture: str, name: str) -> str:
    """GGUF's name of the Hugging Face tensor `name`."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    if architecture == "gemma" and part == "post_attention_layernorm":
        return f"blk.{layer}.ffn_norm.weight"  # without post-norms this norm stands before the feed-forward part
    return f"blk.{layer}.{GGUF_LAYER_NAMES[part]}.weight"


def _shapes(case: Case) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape and standard deviation (for norms: the mean of 1 + weight) of every tensor of the checkpoint."""
    c, q, kv = case, case.heads * case.head_dim, case.kv_heads * case.head_dim
    yield "model.embed_tokens.weight", (c.vocab, c.width), c.embedding_gain * c.width**-0.5
    if not c.tied:
        yield "lm_head.weight", (c.vocab, c.width), c.embedding_gain * c.width**-0.5
    yield "model.norm.weight", (c.width,), c.logit_gain / c.embedding_gain
    post = c.architecture in ("gemma2", "gemma3")  # branches end in a norm, which sets their size
    branch = 1.0 if post else c.branch_gain
    scores = 1.0 if c.architecture == "gemma3" else c.query_key_gain  # query and key norms set it otherwise
    for i in range(c.layers):
        p = f"model.layers.{i}."
        yield p + "self_attn.q_proj.weight", (q, c.width), scores * c.width**-0.5
        yield p + "self_attn.k_proj.weight", (kv, c.width), scores * c.width**-0.5
        yield p + "self_attn.v_proj.weight", (kv, c.width), c.width**-0.5
        yield p + "self_attn.o_proj.weight", (c.width, q), branch * q**-0.5
        yield p + "mlp.gate_proj.weight", (c.hidden, c.width), c.width**-0.5
        yield p + "mlp.up_proj.weight", (c.hidden, c.width), c.width**-0.5
        yield p + "mlp.down_proj.weight", (c.width, c.hidden), branch * c.hidden**-0.5
        yield p + "input_layernorm.weight", (c.width,), 1.0
        if c.architecture != "vaultgemma":
            yield p + "post_attention_layernorm.weight", (c.width,), c.branch_gain if post else 1.0
        if c.architecture != "gemma":
            yield p + "pre_feedforward_layernorm.weight", (c.width,), 1.0
        if post:
            yield p + "post_feedforward_layernorm.weight", (c.width,), c.branch_gain
        if c.architecture == "gemma3":
            yield p + "self_attn.q_norm.weight", (c.head_dim,), c.query_key_gain
            yield p + "self_attn.k_norm.weight", (c.head_dim,), c.query_key_gain


def weights(case: Case) -> dict[str, Floats]:
    """Every tensor of the checkpoint under its Hugging Face name; norms are stored as the difference from 1."""
    return {name: draw(case, name, shape, size, shift=-1) for name, shape, size in _shapes(case)}


def draw(case: Drawn, name: str, shape: tuple[int, ...], size: float, *, shift: float = 0) -> Floats:
    """A tensor: matrices with a standard deviation of `size`, vectors within 30% of `size`, plus `shift`."""
    integers = rng(case, name).integers(-32768, 32768, shape, np.int16).astype(np.float32)
    if len(shape) == 1:
        return np.float32(size + shift) + integers * np.float32(size * 0.3 / 32768)
    return integers * np.float32(size * 3**0.5 / 32768)


def rng(case: Drawn, what: str) -> np.random.Generator:
    return np.random.default_rng([case.seed, zlib.crc32(f"{case.name}/{what}".encode())])


class HasVocabulary(Drawn, Protocol):
    """Also decides which ids there are."""

    @property
    def vocab(self) -> int: ...


def token_ids(case: HasVocabulary, length: int) -> list[int]:
    """A sequence of `length` ids: BOS, then anything in the vocabulary."""
    drawn = rng(case, f"ids {length}").integers(0, case.vocab, length)
    return [2, *drawn[1:].tolist()]


def config(case: Case, *, transformers: int = 5) -> dict[str, Any]:
    """config.json as transformers 4 or 5 writes it."""
    c = case
    out: dict[str, Any] = {
        "architectures": [CLASSES[c.architecture] + "ForCausalLM"],
        "model_type": {"gemma3": "gemma3_text"}.get(c.architecture, c.architecture),
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": c.tied,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "attention_bias": False,
        "dtype" if transformers >= 5 else "torch_dtype": "float32",
    }
    if c.architecture != "gemma":
        out |= {
            "query_pre_attn_scalar": c.query_scalar,
            "sliding_window": c.window,
            "layer_types": c.layer_types,
            "attn_logit_softcapping": c.attention_cap,
            "final_logit_softcapping": c.final_cap,
        }
    return out | (_rope_5(c) if transformers >= 5 else _rope_4(c))


def _rope_5(c: Case) -> dict[str, Any]:
    kind = {"rope_type": "linear", "factor": c.rope_factor} if c.rope_factor != 1 else {"rope_type": "default"}
    whole = {"rope_theta": c.rope_base, **kind}
    if c.architecture != "gemma3":
        return {"rope_parameters": whole}
    local = {"rope_theta": c.rope_local_base, "rope_type": "default"}
    return {"rope_parameters": {"full_attention": whole, "sliding_attention": local}}


def _rope_4(c: Case) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_theta": c.rope_base}
    if c.architecture == "gemma3":
        out["rope_local_base_freq"] = c.rope_local_base
        out["rope_scaling"] = {"rope_type": "linear", "factor": c.rope_factor} if c.rope_factor != 1 else None
    return out


def write_checkpoint(case: Case, folder: Path, *, transformers: int = 5) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(case, transformers=transformers), indent=2), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(case.vocab), ensure_ascii=False), "utf-8")
    save_file(weights(case), folder / "model.safetensors", metadata={"format": "pt"})


def tokenizer_json(size: int) -> dict[str, Any]:
    """The synthetic vocabulary as a byte-fallback BPE; a word's merges are all its cuts into two of its words."""
    tokens, _, types = vocabulary(size)
    text = [t.decode() for t in tokens]
    normal = {t for t, kind in zip(text, types, strict=True) if kind == gguf.TokenType.NORMAL}
    merges = [[t[:i], t[i:]] for t in text if t in normal for i in range(1, len(t)) if {t[:i], t[i:]} <= normal]
    special = [i for i, kind in enumerate(types) if kind in (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text[i], **flags} for i in special],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(text)},
            "merges": merges,
        },
    }


def write_gguf(case: Case, path: Path, format: str = "F32", *, dequantized: bool = False) -> None:
    """Write the case to `path` with every matrix in `format`, norms in F32.

    Formats that the `gguf` package cannot encode (K- and IQ-types) get random blocks of the right size instead of the
    case's weights. `dequantized=True` writes F32 matrices that hold exactly what the file of `format` decodes to.
    """
    writer = gguf.GGUFWriter(path, case.architecture)
    add_metadata(writer, case)
    add_tokenizer(writer, case.vocab)
    for name, values in weights(case).items():
        target = gguf_name(case.architecture, name)
        if values.ndim == 1:
            writer.add_tensor(target, values + np.float32(1))
        else:
            add_matrix(writer, target, encode(case, name, values, format), format, dequantized)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encode(case: Drawn, name: str, values: Floats, format: str) -> npt.NDArray[np.uint8]:
    """Blocks of `format`, (..., bytes of a row): of the values, or random ones of their size (see `write_gguf`)."""
    kind = gguf.GGMLQuantizationType[format]
    if format[-1] == "K" or format.startswith("IQ"):
        *shape, columns = values.shape
        drawn = random_blocks(format, math.prod(shape), columns, rng(case, f"{format} {name}"), float(values.std()))
        return drawn.reshape(*shape, -1)
    return np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)


def add_matrix(writer: gguf.GGUFWriter, name: str, rows: npt.NDArray[np.uint8], format: str, dequantized: bool) -> None:
    """Rows of blocks as they are, or as what they decode to in F32."""
    kind = gguf.GGMLQuantizationType[format]
    if dequantized:
        writer.add_tensor(name, gguf.quants.dequantize(rows, kind).astype(np.float32))
    else:
        writer.add_tensor(name, rows, raw_dtype=kind)


def add_metadata(writer: gguf.GGUFWriter, c: Case) -> None:
    writer.add_type("model")
    writer.add_name(c.name)
    writer.add_context_length(1024)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_float32("edge_gemma.attention.scale", c.query_scalar**-0.5)
    if c.architecture != "gemma":
        writer.add_sliding_window(c.window)
        writer.add_array("edge_gemma.attention.sliding_window_pattern", [kind == "L" for kind in c.local])
    if c.attention_cap:
        writer.add_attn_logit_softcapping(c.attention_cap)
    if c.final_cap:
        writer.add_final_logit_softcapping(c.final_cap)
    if c.architecture == "gemma3":
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", c.rope_local_base)
    if c.rope_factor != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_factor)
    writer.add_quantization_version(2)
