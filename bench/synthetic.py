"""Write GGUF files of exact Gemma shapes filled with random, sane weight blocks: for speed and memory, not for text.

    python bench/synthetic.py --shape gemma2-2b --type Q4_0 OUT

One random pattern of about 16 MB per format is repeated, so 2B takes seconds and little memory. Scales are chosen so
that a matrix of n columns has weights of standard deviation 1/sqrt(n) and activations stay finite. llama.cpp loads the
result.
Knows nothing of the runtime: it needs only NumPy and the `gguf` package, so any interpreter with those can run it.
"""

from __future__ import annotations

import argparse
import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

PATTERN_BYTES = 16 << 20
ALIGNMENT = 32
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama-quantize writes instead of a 256-block where the columns are no multiple of 256."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one model; `architecture` is GGUF's name. `rope_scale` is linear RoPE on global layers."""

    architecture: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    window: int
    rope_base: float = 10000.0
    rope_scale: float = 1.0


SHAPES = {
    "gemma2-2b": Shape("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, 8192, 4096),
    "gemma2-9b": Shape("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, 8192, 4096),
    "gemma2-27b": Shape("gemma2", 46, 4608, 36864, 32, 16, 128, 256000, 8192, 4096),
    "gemma3-270m": Shape("gemma3", 18, 640, 2048, 4, 1, 256, 262144, 32768, 512, 1e6),
    "gemma3-1b": Shape("gemma3", 26, 1152, 6912, 4, 1, 256, 262144, 32768, 512, 1e6),
    "gemma3-4b": Shape("gemma3", 34, 2560, 10240, 8, 4, 256, 262144, 131072, 1024, 1e6, 8.0),
}


@dataclass(frozen=True)
class _Scales:
    """Where a block keeps its f16 scale and minimum, and the size of what its other bits decode to when random."""

    scale_at: int
    rms: float  # of a decoded value when the scale is 1 and the minimum is `min_per_scale`
    min_at: int | None = None
    min_per_scale: float = 0.0  # makes the mean of the decoded values 0


_SCALES = {
    "Q4_0": _Scales(0, 4.6),
    "Q4_1": _Scales(0, 4.6, 2, -7.5),
    "Q5_0": _Scales(0, 9.2),
    "Q5_1": _Scales(0, 9.2, 2, -15.5),
    "Q8_0": _Scales(0, 74),
    "Q2_K": _Scales(80, 13.9, 82, 1.5),
    "Q3_K": _Scales(108, 43),
    "Q4_K": _Scales(0, 258, 2, 7.5),
    "Q5_K": _Scales(0, 527, 2, 15.5),
    "Q6_K": _Scales(208, 1367),
    "IQ4_NL": _Scales(0, 69),
    "IQ4_XS": _Scales(0, 1275),
}

TYPES = ["F32", "F16", "BF16", *_SCALES]
MIXES = [*TYPES, "Q4_K_M"]

Bytes = npt.NDArray[np.uint8]


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator, std: float | None = None) -> Bytes:
    """Random weights of format `name` as file bytes, uint8 (rows, bytes of a row); the same on every platform.

    Every bit pattern of the quants occurs; the decoded values have mean near 0 and standard deviation near `std`
    (default 1/sqrt(columns)). Raises ValueError unless the format's block divides `columns`.
    """
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if columns % block:
        raise ValueError(f"{columns} columns are no multiple of {name}'s block of {block}")
    std = columns**-0.5 if std is None else std
    if block == 1:
        spread = np.float32(std * 12**0.5)
        return _float_bytes(name, (rng.random((rows, columns), np.float32) - np.float32(0.5)) * spread)
    blocks = rng.integers(0, 256, (rows * columns // block, nbytes), np.uint8)
    _set_scales(blocks, _SCALES[name], std, rng)
    return blocks.reshape(rows, -1)


def _float_bytes(name: str, values: npt.NDArray[np.float32]) -> Bytes:
    if name == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(np.float16 if name == "F16" else np.float32).view(np.uint8)


def _set_scales(blocks: Bytes, kind: _Scales, std: float, rng: np.random.Generator) -> None:
    scale = rng.uniform(0.75, 1.25, len(blocks)).astype(np.float32) * np.float32(std / kind.rms)
    blocks[:, kind.scale_at : kind.scale_at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
    if kind.min_at is not None:
        minimum = (scale * np.float32(kind.min_per_scale)).astype(np.float16)
        blocks[:, kind.min_at : kind.min_at + 2] = minimum[:, None].view(np.uint8)


@dataclass(frozen=True)
class Tensor:
    name: str
    rows: int  # 0 for a vector
    columns: int
    type: str


def plan(shape: Shape, mix: str, *, pure: bool = False) -> list[Tensor]:
    """Every tensor of a file of this shape, in file order, with the type `mix` gives it (`pure`: one type for all)."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    d, f = shape.width, shape.hidden
    matrices = [("attn_q", q, d), ("attn_k", kv, d), ("attn_v", kv, d), ("attn_output", d, q)]
    matrices += [("ffn_gate", f, d), ("ffn_up", f, d), ("ffn_down", d, f)]
    vectors = [("attn_norm", d), ("post_attention_norm", d), ("ffn_norm", d), ("post_ffw_norm", d)]
    if shape.architecture == "gemma3":
        vectors += [("attn_q_norm", shape.head_dim), ("attn_k_norm", shape.head_dim)]
    tensors = [Tensor("token_embd.weight", shape.vocab, d, _fit(_embedding_type(mix, pure), d))]
    for i in range(shape.layers):
        tensors += [Tensor(f"blk.{i}.{name}.weight", 0, columns, "F32") for name, columns in vectors]
        for name, rows, columns in matrices:
            kind = _fit(_matrix_type(mix, name, i, shape.layers, pure), columns)
            tensors.append(Tensor(f"blk.{i}.{name}.weight", rows, columns, kind))
    return [*tensors, Tensor("output_norm.weight", 0, d, "F32")]


def _embedding_type(mix: str, pure: bool) -> str:
    """llama-quantize treats a tied embedding as the output matrix: Q6_K unless the file is wider than that."""
    if pure:
        return _base(mix)
    return mix if mix in ("F32", "F16", "BF16", "Q8_0") else "Q6_K"


def _matrix_type(mix: str, name: str, layer: int, layers: int, pure: bool) -> str:
    widened = mix == "Q4_K_M" and name in ("attn_v", "ffn_down") and _use_more_bits(layer, layers)
    return "Q6_K" if widened and not pure else _base(mix)


def _base(mix: str) -> str:
    return "Q4_K" if mix == "Q4_K_M" else mix


def _use_more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _fit(name: str, columns: int) -> str:
    return FALLBACK[name] if name in FALLBACK and columns % 256 else name


def vocabulary(size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a valid vocabulary of exactly `size` tokens, with Gemma's special ids.

    Ids 0..3 are pad, eos, bos and unk; from 512 tokens on 105 and 106 are the turn marks; then 256 byte tokens and
    letters; the rest enumerates words, each a merge of a shorter word and a letter. Raises ValueError for a size
    below 261.
    """
    if size < 261:
        raise ValueError(f"a vocabulary needs at least 261 tokens, got {size}")
    kind = gguf.TokenType
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if size >= 512:
        special += [*(f"<unused{i}>" for i in range(101)), "<start_of_turn>", "<end_of_turn>"]
    rows = [(text, -1000.0, kind.UNKNOWN if text == "<unk>" else kind.CONTROL) for text in special]
    rows += [(f"<0x{byte:02X}>", -1000.0, kind.BYTE) for byte in range(256)]
    for i, text in enumerate(itertools.islice(_words(), size - len(rows))):
        rows.append((text, -float(i), kind.NORMAL))
    return [text.encode() for text, _, _ in rows], [score for _, score, _ in rows], [int(t) for _, _, t in rows]


def _words() -> Iterator[str]:
    """Single characters, then words of 2, 3, ... letters with and without the word mark."""
    letters = string.ascii_lowercase
    yield from "▁" + letters + string.ascii_uppercase + string.digits + ".,;:!?'\"()-\n"
    for length in itertools.count(1):
        for word in itertools.product(letters, repeat=length):
            yield "▁" + "".join(word)
            if length > 1:
                yield "".join(word)


def write(path: Path, shape: Shape, mix: str, *, pure: bool = False, seed: int = 0) -> None:
    """Write a model of `shape` to `path`, replacing it; the bytes depend only on the arguments."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape, mix)
    add_tokenizer(writer, shape.vocab)
    tensors = plan(shape, mix, pure=pure)
    for t in tensors:
        dims = [t.rows, t.columns] if t.rows else [t.columns]
        writer.add_tensor_info(t.name, dims, np.dtype(np.float32), _size(t), gguf.GGMLQuantizationType[t.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    patterns = _Patterns(np.random.default_rng(seed))
    with path.open("ab") as file:
        for t in tensors:
            _pad(file)
            patterns.write(file, t)
        _pad(file)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, mix: str) -> None:
    writer.add_type("model")
    writer.add_name(f"synthetic {shape.architecture} {mix}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(shape.window)
    if shape.architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    else:
        writer.add_rope_freq_base(shape.rope_base)
    if shape.rope_scale != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_scale)
    writer.add_quantization_version(2)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPE.get(mix, f"MOSTLY_{mix}")])


_FILE_TYPE = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}


def add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """The synthetic vocabulary of `size` tokens with the metadata llama.cpp's converter writes for Gemma."""
    tokens, scores, types = vocabulary(size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _size(t: Tensor) -> int:
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[t.type]]
    return max(t.rows, 1) * (t.columns // block) * nbytes


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


class _Patterns:
    """One random pattern per (format, columns); each tensor starts at another row of it, so layers differ."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._made: dict[tuple[str, int], Bytes] = {}

    def write(self, file: BinaryIO, t: Tensor) -> None:
        if not t.rows:
            file.write(self._rng.uniform(0.8, 1.2, t.columns).astype(np.float32).tobytes())
            return
        pattern = self._pattern(t)
        row, left = int(self._rng.integers(len(pattern))), t.rows
        while left:
            part = pattern[row : row + left]
            file.write(part.data)
            row, left = 0, left - len(part)

    def _pattern(self, t: Tensor) -> Bytes:
        key = t.type, t.columns
        if key not in self._made:
            rows = max(1, min(t.rows, PATTERN_BYTES * t.rows // _size(t)))
            self._made[key] = random_blocks(t.type, rows, t.columns, self._rng)
        return self._made[key]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a GGUF of a Gemma shape filled with random blocks.")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--type", choices=MIXES, required=True, help="weight format, or the mix Q4_K_M")
    parser.add_argument("--pure", action="store_true", help="the embedding and every matrix get the same format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], args.type, pure=args.pure, seed=args.seed)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
