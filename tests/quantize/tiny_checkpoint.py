"""Small Hugging Face folders with seeded random weights and a real, small tokenizer; no torch."""

from __future__ import annotations

import functools
import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "vaultgemma": "VaultGemmaForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
}
VOCAB = 384
SPACE = "\u2581"
TEXT = (
    "The quick brown fox jumps over the lazy dog. ",
    "A checkpoint goes in and a smaller file comes out of the other end of the machine. ",
    "Numbers such as 1 2 3 4 5 6 7 8 9 0, and words with (brackets) and 'quotes'. ",
)

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
EXTRA: dict[str, dict[str, Any]] = {
    "gemma": {"hidden_act": "gelu", "rope_theta": 10000.0},
    "gemma2": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rope_theta": 10000.0,
    },
    "vaultgemma": {
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["full_attention"] * 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "llama": {"hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": True},
    "gemma3": {
        "num_hidden_layers": 7,
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
    },
    "gemma4": {
        "num_hidden_layers": 4,
        "sliding_window": 16,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0,
    },
}


@functools.cache
def sentencepiece_model() -> bytes:
    """A BPE model of VOCAB pieces with Gemma's control tokens, byte fallback and user-defined newlines and spaces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", SPACE * 2],
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def pieces() -> list[tuple[str, float]]:
    """(piece, score) of every token of `sentencepiece_model`."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=sentencepiece_model())
    ids = list(range(model.GetPieceSize()))
    return list(zip(model.IdToPiece(ids), model.GetScore(ids), strict=True))


ADDED = {0: ("<pad>", True), 1: ("<eos>", True), 2: ("<bos>", True), 3: ("<unk>", True), 4: ("<mask>", False)} | {
    5: ("<unused0>", False),
    6: ("<start_of_turn>", True),
    7: ("<end_of_turn>", True),
    8: ("\n", False),
    9: ("\n\n", False),
    10: (SPACE * 2, False),
}


def tokenizer_config() -> dict[str, Any]:
    added = {str(number): {"content": text, "special": special} for number, (text, special) in ADDED.items()}
    roles = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    return {**roles, "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added}


def tokenizer_json() -> dict[str, Any]:
    """The same tokenizer as transformers writes it: merges in the order of the merged pieces' scores."""
    table = pieces()
    vocab = {piece: number for number, (piece, _) in enumerate(table)}
    merges = []
    for piece, score in table:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += [(-score, vocab[a], vocab[b], [a, b]) for a, b in splits]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocab}
    model["merges"] = [pair for *_, pair in sorted(merges)]
    added = [{"id": number, "content": text, "special": special} for number, (text, special) in ADDED.items()]
    return {"added_tokens": added, "model": model}


def hf_tensors(config: Mapping[str, Any], architecture: str, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights by their Hugging Face names, `model.` in front; norms around 0."""
    rng = np.random.default_rng(seed)
    width, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    block: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, q),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
    }
    if architecture != "vaultgemma":
        block |= {"post_attention_layernorm": (width,)}
    if architecture not in ("gemma", "llama"):
        block |= {"pre_feedforward_layernorm": (width,)}
    if architecture in ("gemma2", "gemma3", "gemma4"):
        block |= {"post_feedforward_layernorm": (width,)}
    if architecture in ("gemma3", "gemma4"):
        block |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        own = block | (_global_of_gemma4(config) if architecture == "gemma4" and layer % 2 else {})
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}


def _global_of_gemma4(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What differs in every second layer."""
    width, head = config["hidden_size"], config["global_head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, q),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
    }


def stored(values: NDArray[np.float32], dtype: str) -> bytes:
    """The bytes of `values` in a safetensors dtype; bfloat16 by cutting off."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        data = stored(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    write_raw_safetensors(path, json.dumps(header).encode(), body)


def write_raw_safetensors(path: Path, header: bytes, body: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def make_config(architecture: str, **overrides: Any) -> dict[str, Any]:
    """A config.json as transformers 4 writes it. An override of `...` leaves the key out."""
    config = {"architectures": [CLASSES[architecture]], **BASE, **EXTRA[architecture], **overrides}
    return {key: value for key, value in config.items() if value is not ...}


def write_checkpoint(
    folder: Path,
    architecture: str = "gemma2",
    *,
    dtype: str = "F32",
    shards: int = 1,
    tokenizer: str = "model",
    seed: int = 0,
    **overrides: Any,
) -> dict[str, NDArray[np.float32]]:
    """Write a folder and return its tensors. `tokenizer`: "model" or "json"; `overrides`: keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(architecture, **overrides)
    tensors = hf_tensors({**BASE, **EXTRA[architecture], **config}, architecture, seed)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_tokenizer(folder, tokenizer)
    write_weights(folder, tensors, dtype, shards)
    return tensors


def write_tokenizer(folder: Path, kind: str = "model") -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()), "utf-8")
    if kind == "model":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    else:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), "utf-8")


def write_weights(
    folder: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32", shards: int = 1
) -> None:
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        write_safetensors(folder / shard, part, dtype)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
