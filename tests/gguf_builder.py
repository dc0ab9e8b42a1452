"""Writes GGUF bytes, sound or broken, straight from the specification: independent of the reader and of `gguf`.

`Builder` lays out whatever it is told; `tiny_gemma` is a complete small model whose parts a test can replace, but for
its tokenizer, which `runnable_gemma` has.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
TYPE_F32, TYPE_F16, TYPE_Q4_0, TYPE_Q8_0, TYPE_Q4_K = 0, 1, 2, 8, 12
BLOCKS = {TYPE_F32: (1, 4), TYPE_F16: (1, 2), TYPE_Q4_0: (32, 18), TYPE_Q8_0: (32, 34), TYPE_Q4_K: (256, 144)}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: float | str | bytes) -> bytes:
    return string(value) if isinstance(value, str | bytes) else struct.pack("<" + CODES[kind], value)


def typed(kind: int, value: float | str | bytes) -> bytes:
    """Type and value, as they follow a key."""
    return struct.pack("<I", kind) + scalar(kind, value)


def array(kind: int, values: Sequence[float] | Sequence[str] | Sequence[bytes], count: int | None = None) -> bytes:
    """An array value; `count` overrides the declared number of entries."""
    head = struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, v) for v in values)


def u32(value: int) -> bytes:
    return typed(U32, value)


def f32(value: float) -> bytes:
    return typed(F32, value)


@dataclass
class TensorRecord:
    """`dims` are in the file's order, the row length first. None: what is right."""

    name: str | bytes
    dims: tuple[int, ...]
    type_id: int = TYPE_F32
    data: bytes | None = None
    offset: int | None = None
    rank: int | None = None

    def payload(self) -> bytes:
        if self.data is not None:
            return self.data
        block, nbytes = BLOCKS.get(self.type_id, (1, 4))
        return bytes(int(np.prod(self.dims, dtype=object)) // block * nbytes)


@dataclass
class Builder:
    """`keys`: (key, type and value) pairs, so that a key can appear twice. None: what is right."""

    keys: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[TensorRecord] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    tail: bytes = b""

    def set(self, key: str, value: bytes | None) -> Builder:
        """Replace the value of `key`, add it, or with None remove it."""
        names = [k for k, _ in self.keys]
        if value is None:
            self.keys = [pair for pair in self.keys if pair[0] != key]
        elif key in names:
            self.keys[names.index(key)] = (key, value)
        else:
            self.keys.append((key, value))
        return self

    def tensor(self, name: str) -> TensorRecord:
        return next(t for t in self.tensors if t.name == name)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [string(key) + value for key, value in self.keys]
        offset = 0
        for tensor in self.tensors:
            rank = len(tensor.dims) if tensor.rank is None else tensor.rank
            at = offset if tensor.offset is None else tensor.offset
            parts.append(string(tensor.name) + struct.pack(f"<I{len(tensor.dims)}Q", rank, *tensor.dims))
            parts.append(struct.pack("<IQ", tensor.type_id, at))
            offset += self._padded(len(tensor.payload()))
        return b"".join(parts)

    def build(self) -> bytes:
        header = self.header()
        parts = [header.ljust(self._padded(len(header)), b"\0")]
        parts += [(raw := t.payload()).ljust(self._padded(len(raw)), b"\0") for t in self.tensors]
        return b"".join(parts) + self.tail

    def _padded(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment


WITH_HEAD_NORMS = ("gemma3", "gemma4", "gemma-embedding", "gemma-embedding2")
TINY = {"d_model": 64, "d_ff": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "vocab": 48, "n_layers": 4}


def tiny_gemma(architecture: str = "gemma2", **sizes: int) -> Builder:
    """A model with F32 norms of 1 and F16 matrices of 0; `sizes` replace entries of TINY. Gemma 4 has every second
    layer global, and nothing that only some of its sizes have."""
    s = TINY | sizes
    builder = Builder(keys=[("general.architecture", typed(STRING, architecture)), *_hyper_parameters(architecture, s)])
    tokens = [f"token{i}" for i in range(s["vocab"])]
    builder.set("tokenizer.ggml.tokens", array(STRING, tokens))
    builder.tensors = [_matrix("token_embd", s["vocab"], s["d_model"]), _norm("output_norm", s["d_model"])]
    if architecture == "gemma4" and s["n_layers"] > 1:
        builder.tensors.append(_norm("rope_freqs", s["head_dim"] // 2))
    if architecture == "gemma-embedding2":
        builder.tensors.append(_matrix("output", s["d_ff"], s["d_model"]))
    for layer in range(s["n_layers"]):
        builder.tensors += _layer(architecture, layer, s)
    return builder


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Entries = list[tuple[str | bytes, float, int]]
SMALL_VOCABULARY: Entries = [
    ("<pad>", 0.0, CONTROL), ("<eos>", 0.0, CONTROL), ("<bos>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN),
    *((f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)),
    ("\u2581", -1.0, NORMAL), ("a", -2.0, NORMAL), ("b", -3.0, NORMAL), ("ab", -0.5, NORMAL),
    ("\u2581a", -0.25, NORMAL), ("<end_of_turn>", 0.0, CONTROL), ("  ", 0.0, USER_DEFINED), ("<b>", 0.0, USER_DEFINED),
    ("[PAD0]", -10000.0, UNUSED),
]  # fmt: skip
"""(text, score, type) of each token."""


def runnable_gemma(architecture: str = "gemma2", entries: Entries = SMALL_VOCABULARY, **sizes: int) -> Builder:
    """`tiny_gemma` with heads that the kernels take, a vocabulary of `entries`, and all that a tokenizer needs."""
    builder = tiny_gemma(architecture, **{"head_dim": 32, "vocab": max(len(entries), 1)} | sizes)
    builder.set("tokenizer.ggml.model", typed(STRING, "llama"))
    builder.set(
        "tokenizer.ggml.tokens", array(STRING, [t.encode() if isinstance(t, str) else t for t, _, _ in entries])
    )
    builder.set("tokenizer.ggml.scores", array(F32, [score for _, score, _ in entries]))
    builder.set("tokenizer.ggml.token_type", array(I32, [kind for _, _, kind in entries]))
    for name, value in (("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0)):
        builder.set(f"tokenizer.ggml.{name}_token_id", u32(value))
    return builder.set("tokenizer.ggml.add_space_prefix", typed(BOOL, 0))


def _hyper_parameters(architecture: str, s: dict[str, int]) -> list[tuple[str | bytes, bytes]]:
    keys = {
        "context_length": u32(512),
        "embedding_length": u32(s["d_model"]),
        "block_count": u32(s["n_layers"]),
        "feed_forward_length": u32(s["d_ff"]),
        "attention.head_count": u32(s["n_heads"]),
        "attention.head_count_kv": u32(s["n_kv_heads"]),
        "attention.layer_norm_rms_epsilon": f32(1e-6),
        "attention.key_length": u32(s["head_dim"]),
        "attention.value_length": u32(s["head_dim"]),
    }
    if architecture not in ("gemma", "llama"):
        keys["attention.sliding_window"] = u32(64)
    if architecture == "gemma-embedding2":
        keys["embedding_length_out"] = u32(s["d_ff"])
    if architecture in ("gemma4", "gemma-embedding2"):
        keys |= {
            "attention.key_length_swa": u32(s["head_dim"]),
            "attention.value_length_swa": u32(s["head_dim"]),
            "attention.sliding_window_pattern": array(BOOL, [i % 2 == 0 for i in range(s["n_layers"])]),
            "embedding_length_per_layer_input": u32(0),
        }
    return [(f"{architecture}.{name}", value) for name, value in keys.items()]


def _layer(architecture: str, layer: int, s: dict[str, int]) -> list[TensorRecord]:
    d, ff, q, kv = s["d_model"], s["d_ff"], s["n_heads"] * s["head_dim"], s["n_kv_heads"] * s["head_dim"]
    norms = {"attn_norm": d, "ffn_norm": d}
    if architecture in ("gemma2", *WITH_HEAD_NORMS):
        norms |= {"post_attention_norm": d, "post_ffw_norm": d}
    if architecture in WITH_HEAD_NORMS:
        norms |= {"attn_q_norm": s["head_dim"], "attn_k_norm": s["head_dim"]}
    matrices = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
    matrices |= {"ffn_gate": (ff, d), "ffn_up": (ff, d), "ffn_down": (d, ff)}
    prefix = f"blk.{layer}."
    return [_norm(prefix + name, n) for name, n in norms.items()] + [
        _matrix(prefix + name, rows, columns) for name, (rows, columns) in matrices.items()
    ]


def _norm(name: str, n: int) -> TensorRecord:
    return TensorRecord(f"{name}.weight", (n,), TYPE_F32, np.ones(n, "<f4").tobytes())


def _matrix(name: str, rows: int, columns: int) -> TensorRecord:
    return TensorRecord(f"{name}.weight", (columns, rows), TYPE_F16)
