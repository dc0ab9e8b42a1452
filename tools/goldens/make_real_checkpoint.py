"""Widen a Gemma 3 GGUF with a real tokenizer into a Hugging Face folder: a real checkpoint for the quantizer.

    python tools/goldens/make_real_checkpoint.py gemma-3-270m.gguf FOLDER

Needs gguf, sentencepiece with protobuf, and tokenizers. The folder gets model.safetensors (BF16), config.json as
transformers 4 writes it, and the tokenizer three ways: tokenizer.model, tokenizer.json, tokenizer_config.json.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from sentencepiece import sentencepiece_model_pb2 as sp_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CONTROL, USER_DEFINED, BYTE = 3, 4, 6
SPACE = "\u2581"
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, layer, block, _ = name.split(".")
    return f"model.layers.{layer}.{BLOCK_NAMES[block]}.weight"


def to_bf16(values: np.ndarray) -> np.ndarray:
    return gguf.quants.quantize(np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType.BF16)


def write_tensors(reader: gguf.GGUFReader, path: Path) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        end = offset + 2 * int(np.prod(shape))
        header[hf_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shift = 1.0 if tensor.name.endswith("norm.weight") else 0.0
            file.write(to_bf16(values - np.float32(shift)).tobytes())


def config(reader: gguf.GGUFReader) -> dict[str, object]:
    def key(name: str) -> int | float:
        return reader.fields[f"gemma3.{name}"].contents()

    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "head_dim": key("attention.key_length"),
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": 1e-6,
        "rope_theta": key("rope.freq_base"),
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "sliding_window": key("attention.sliding_window"),
        "_sliding_window_pattern": 6,
        "query_pre_attn_scalar": key("attention.key_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def vocabulary(reader: gguf.GGUFReader) -> list[tuple[str, float, int]]:
    def values(name: str) -> list[object]:
        field = reader.fields[f"tokenizer.ggml.{name}"]
        return [field.parts[i] for i in field.data]

    rows = zip(values("tokens"), values("scores"), values("token_type"), strict=True)
    return [(bytes(text).decode(), float(score[0]), int(kind[0])) for text, score, kind in rows]


def write_sentencepiece(tokens: list[tuple[str, float, int]], path: Path) -> None:
    model = sp_model.ModelProto()
    for text, score, kind in tokens:
        added = kind in (CONTROL, USER_DEFINED)
        piece = model.pieces.add(piece=text.replace(" ", SPACE), score=0.0 if added else score)
        piece.type = 2 if text == "<unk>" else kind
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = 2, len(tokens), True
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece, spec.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())


def merges(tokens: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """In transformers' order: by the score of the merged piece, then by the ids of the parts."""
    ids = {text.replace(" ", SPACE): number for number, (text, _, _) in enumerate(tokens)}
    found = []
    for number, (text, score, kind) in enumerate(tokens):
        if kind in (CONTROL, BYTE):
            continue
        piece = text.replace(" ", SPACE)
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        found += [(score, number, ids[left], ids[right], left, right) for left, right in splits]
    found.sort(key=lambda row: (-row[0], row[1], row[2], row[3]))
    return [(left, right) for *_, left, right in found]


def write_tokenizer_json(tokens: list[tuple[str, float, int]], path: Path) -> None:
    vocab = {text.replace(" ", SPACE): number for number, (text, _, _) in enumerate(tokens)}
    model = models.BPE(vocab, merges(tokens), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    added = [(text, kind) for text, _, kind in tokens if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(t.replace(" ", SPACE), normalized=False, special=k == CONTROL) for t, k in added])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(path), pretty=False)


def write_tokenizer_config(tokens: list[tuple[str, float, int]], path: Path) -> None:
    added = {
        str(number): {"content": text.replace(" ", SPACE), "special": kind == CONTROL}
        for number, (text, _, kind) in enumerate(tokens)
        if kind in (CONTROL, USER_DEFINED)
    }
    roles = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    flags = {"add_bos_token": True, "add_eos_token": False}
    path.write_text(json.dumps({**roles, **flags, "added_tokens_decoder": added}), "utf-8")


def main(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    (folder / "config.json").write_text(json.dumps(config(reader), indent=2), "utf-8")
    write_tensors(reader, folder / "model.safetensors")
    tokens = vocabulary(reader)
    write_sentencepiece(tokens, folder / "tokenizer.model")
    write_tokenizer_json(tokens, folder / "tokenizer.json")
    write_tokenizer_config(tokens, folder / "tokenizer_config.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
