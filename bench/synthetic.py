"""GGUF files of exact Gemma 2 shapes filled with random, sane weight blocks: for speed and memory, not for text.

One random pattern of about 16 MB per format is repeated, so 2B takes seconds; a tensor is in memory as a whole.
Scales are chosen so that a matrix of n columns has weights of standard deviation 1/sqrt(n) and activations stay finite.
llama.cpp loads the result. The formats of the tensors are the quantizer's choice; all else needs only NumPy and the
`gguf` package, so that the interpreters that record goldens can use it. `synthetic_gemma4.py` has other shapes.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edge_gemma.quantize.recipe import Model

PATTERN_BYTES = 16 << 20


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 256000
    context: int = 8192
    window: int = 4096


SHAPES = {
    "gemma2-2b": Shape(26, 2304, 9216, 8, 4, 256),
    "gemma2-9b": Shape(42, 3584, 14336, 16, 8, 256),
    "gemma2-27b": Shape(46, 4608, 36864, 32, 16, 128),
}

# ---- weights -------------------------------------------------------------------------------------------------------


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
    "IQ3_XXS": _Scales(0, 142),
    "IQ3_S": _Scales(0, 140),
    "IQ2_XXS": _Scales(0, 53.4),
    "IQ2_XS": _Scales(0, 56),
    "IQ2_S": _Scales(0, 56),
    "IQ1_S": _Scales(0, 7.2),
    "IQ1_M": _Scales(48, 7.2),
    "MXFP4": _Scales(0, 5.85),
}

Bytes = npt.NDArray[np.uint8]


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator, std: float | None = None) -> Bytes:
    """Random weights of format `name` as file bytes, uint8 (rows, bytes of a row); the same on every platform.

    Every bit pattern of the quants occurs; the decoded values have mean near 0 and standard deviation near `std`
    (default 1/sqrt(columns)). Raises ValueError unless the format's block divides `columns`.
    """
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if columns % block:
        raise ValueError(f"{columns} columns are no multiple of {name}'s block of {block}")
    blocks = rng.integers(0, 256, (rows * columns // block, nbytes), np.uint8)
    kind = _SCALES[name]
    size = np.float32((columns**-0.5 if std is None else std) / kind.rms)
    scale = rng.uniform(0.75, 1.25, len(blocks)).astype(np.float32) * size
    if name == "MXFP4":
        blocks[:, 0] = _powers_of_two(scale, rng)
        return blocks.reshape(rows, -1)
    if name == "IQ1_M":
        _quarter(scale.astype(np.float16), blocks[:, kind.scale_at :])
        return blocks.reshape(rows, -1)
    blocks[:, kind.scale_at : kind.scale_at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)
    if kind.min_at is not None:
        minimum = (scale * np.float32(kind.min_per_scale)).astype(np.float16)
        blocks[:, kind.min_at : kind.min_at + 2] = minimum[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def _powers_of_two(scale: npt.NDArray[np.float32], rng: np.random.Generator) -> Bytes:
    """MXFP4's scale bytes: a power of two below or above each scale, such that the mean of squares is kept."""
    fraction, exponent = np.frexp(scale)  # fraction in [0.5, 1)
    above = rng.uniform(0, 1, len(scale)) < (4 * fraction**2 - 1) / 3
    return (exponent - 1 + above + 128).astype(np.uint8)


def _quarter(scale: npt.NDArray[np.float16], shorts: Bytes) -> None:
    """IQ1_M's scale: 4 of its bits in the upper end of each of four 16-bit numbers, the lowest first."""
    for i in range(4):
        quarter = (scale.view(np.uint16) >> 4 * i & 15).astype(np.uint8)
        shorts[:, 2 * i + 1] = shorts[:, 2 * i + 1] & 15 | quarter << 4


# ---- vocabulary ----------------------------------------------------------------------------------------------------


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


# ---- files ---------------------------------------------------------------------------------------------------------

Tensor = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]
"""Name, row-major shape, format."""


def plan(shape: Shape, mix: str) -> list[Tensor]:
    """Every tensor of a file of this shape, in file order, with the format that `mix` gives it."""
    from edge_gemma.quantize.recipe import Model

    q, kv, d, f = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.width, shape.hidden
    layer: list[tuple[str, tuple[int, ...]]] = [
        *((name, (d,)) for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")),
        *(("attn_q", (q, d)), ("attn_k", (kv, d)), ("attn_v", (kv, d)), ("attn_output", (d, q))),
        *(("ffn_gate", (f, d)), ("ffn_up", (f, d)), ("ffn_down", (d, f))),
    ]
    layers = [(f"blk.{i}.{name}.weight", size) for i in range(shape.layers) for name, size in layer]
    named = [("token_embd.weight", (shape.vocab, d)), *layers, ("output_norm.weight", (d,))]
    return with_formats(named, mix, Model(shape.layers, shape.heads // shape.kv_heads))


def with_formats(named: Iterable[tuple[str, tuple[int, ...]]], mix: str, model: Model) -> list[Tensor]:
    """Tensors with the formats that `mix` gives them, made from a checkpoint in bfloat16 as published ones are."""
    from edge_gemma.formats import FORMATS
    from edge_gemma.quantize.recipe import MIXES, Overrides, choose

    stored = FORMATS["BF16"]
    formats = ((*of, choose(MIXES[mix], model, *of, Overrides(), tied=True, stored=stored).name) for of in named)
    return [(name, size, gguf.GGMLQuantizationType[kind]) for name, size, kind in formats]


def write(path: Path, shape: Shape, mix: str) -> None:
    """Write a model of `shape` to `path`, replacing it; the bytes depend only on the arguments."""
    writer = gguf.GGUFWriter(path, "gemma2")
    _add_metadata(writer, shape)
    finish(writer, mix, shape.vocab, plan(shape, mix))


def finish(
    writer: gguf.GGUFWriter,
    mix: str,
    vocab: int,
    tensors: Sequence[Tensor],
    given: Mapping[str, Sequence[float]] = {},
) -> None:
    """Add what all files have, and write them: a vocabulary, and the tensors, random but for the values `given`."""
    writer.add_name(f"synthetic {writer.arch} {mix}")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{mix}"])
    writer.add_quantization_version(2)
    add_tokenizer(writer, vocab)
    for name, size, kind in tensors:
        writer.add_tensor_info(name, size, np.dtype(np.float32), _nbytes(size, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    patterns = _Patterns(np.random.default_rng(0))
    for name, size, kind in tensors:
        data = np.array(given[name], np.float32) if name in given else patterns.data(size, kind)
        writer.write_tensor_data(data)
    writer.close()


class _Patterns:
    """One random pattern for each format and width."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._made: dict[tuple[int, str], Bytes] = {}

    def data(self, size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
        """A vector, a matrix of floats, or rows of the pattern, from any row on, so that layers differ."""
        if len(size) == 1:
            return self._rng.uniform(0.8, 1.2, size).astype(np.float32)
        rows, columns = math.prod(size[:-1]), size[-1]
        if kind.name not in _SCALES:
            floats = self._rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
            return gguf.quants.quantize(floats, kind)
        if (columns, kind.name) not in self._made:
            count = max(1, min(rows, PATTERN_BYTES * rows // _nbytes(size, kind)))
            self._made[columns, kind.name] = random_blocks(kind.name, count, columns, self._rng)
        pattern = self._made[columns, kind.name]
        return np.resize(np.roll(pattern, -int(self._rng.integers(len(pattern))), axis=0), (rows, pattern.shape[1]))


def _nbytes(size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(size) // block * nbytes


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_type("model")
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
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
