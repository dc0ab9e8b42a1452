"""GGUF files of the exact shapes of Gemma 4 filled with random, sane weight blocks, as `synthetic.py` has of Gemma 2.

Tensors and keys are those of our converter for the published config.json of each size. Layers may be fewer: a token of
the 26B then costs as many bytes for each of them.

    python -m bench.synthetic_gemma4 e2b Q4_0 e2b-Q4_0.gguf
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bench.synthetic import PATTERN_BYTES, add_tokenizer, random_blocks
from edge_gemma.gguf.values import Value
from edge_gemma.models.architecture import Config
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.registry import ARCHITECTURES
from edge_gemma.models.tensor_table import TensorSpec

VOCABULARY = 262_144
_KV = "num_key_value_heads"


def _layers(count: int, period: int) -> dict[str, Any]:
    kinds = ["full_attention" if i % period == period - 1 else "sliding_attention" for i in range(count)]
    return {"num_hidden_layers": count, "layer_types": [*kinds[:-1], "full_attention"]}


def _sizes(d_model: int, d_ff: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": d_model, "intermediate_size": d_ff, "num_attention_heads": heads, _KV: kv_heads} | more


_SINGLE = {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024}
_EXPERTS = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
SHAPES: dict[str, dict[str, Any]] = {
    "e2b": _layers(35, 5) | _sizes(1536, 6144, 8, 1, num_kv_shared_layers=20, use_double_wide_mlp=True),
    "e4b": _layers(42, 6) | _sizes(2560, 10240, 8, 2, num_kv_shared_layers=18),
    "12b": _layers(48, 6) | _sizes(3840, 15360, 16, 8, num_global_key_value_heads=1, **_SINGLE),
    "26b": _layers(30, 6) | _sizes(2816, 2112, 16, 8, num_global_key_value_heads=2, **_SINGLE, **_EXPERTS),
    "26b-6-layers": _layers(6, 6) | _sizes(2816, 2112, 16, 8, num_global_key_value_heads=2, **_SINGLE, **_EXPERTS),
    "31b": _layers(60, 6) | _sizes(5376, 21504, 32, 16, num_global_key_value_heads=4, **_SINGLE),
}
"""By size, the part of config.json that differs from the defaults."""


def config(size: str) -> Config:
    """The configuration of a published size."""
    fields = SHAPES[size] | {"vocab_size": VOCABULARY, "final_logit_softcapping": 30.0}
    return ARCHITECTURES["gemma4"].from_hf(HfFields(fields, {}, size))


def write(path: Path, size: str, mix: str) -> None:
    """Write a model of `size` to `path`, replacing it; the bytes depend only on the arguments."""
    model, writer = config(size), gguf.GGUFWriter(path, "gemma4")
    writer.add_name(f"synthetic gemma4 {size} {mix}")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{mix}"])
    for key, value in model.model.metadata(model).items():
        _add(writer, key, value)
    add_tokenizer(writer, VOCABULARY)
    tensors = list(_formats(model, mix))
    for spec, kind in tensors:
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), _nbytes(spec.shape, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng, patterns = np.random.default_rng(0), dict[tuple[int, str], npt.NDArray[np.uint8]]()
    for spec, kind in tensors:
        writer.write_tensor_data(_data(spec, kind, rng, patterns))
    writer.close()


def _formats(model: Config, mix: str) -> Iterator[tuple[TensorSpec, gguf.GGMLQuantizationType]]:
    from edge_gemma.quantize.recipe import MIXES, Model, Overrides, choose

    chosen = Model(len(model.layers), model.n_heads // model.layers[0].n_kv_heads)
    for spec in model.tensors():
        if spec.role != "output":
            name = choose(MIXES[mix], chosen, spec.name, spec.shape, Overrides(), tied=True).name
            yield spec, gguf.GGMLQuantizationType[name]


def _data(
    spec: TensorSpec,
    kind: gguf.GGMLQuantizationType,
    rng: np.random.Generator,
    patterns: dict[tuple[int, str], npt.NDArray[np.uint8]],
) -> npt.NDArray[Any]:
    """A vector, or rows of one random pattern for each format and width, from any row on, so that layers differ."""
    if spec.values is not None:
        return np.array(spec.values, np.float32)
    if len(spec.shape) == 1:
        return rng.uniform(0.8, 1.2, spec.shape).astype(np.float32)
    rows, columns = int(np.prod(spec.shape[:-1])), spec.shape[-1]
    if kind.name in ("F32", "F16", "BF16"):
        floats = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(columns**-0.5)
        return np.ascontiguousarray(gguf.quants.quantize(floats, kind))
    if (columns, kind.name) not in patterns:
        count = max(1, min(rows, PATTERN_BYTES * rows // _nbytes(spec.shape, kind)))
        patterns[columns, kind.name] = random_blocks(kind.name, count, columns, rng)
    pattern = patterns[columns, kind.name]
    rolled = np.roll(pattern, -int(rng.integers(len(pattern))), axis=0)
    return np.broadcast_to(rolled, (-(-rows // len(rolled)), *rolled.shape)).reshape(-1, rolled.shape[1])[:rows]


def _nbytes(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * nbytes


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """A key under its kind."""
    kind, _, element = value.kind.rstrip("]").partition("[")
    plain = value.value.tolist() if isinstance(value.value, np.ndarray) else value.value
    plain = plain.decode() if isinstance(plain, bytes) else plain
    types = gguf.GGUFValueType
    writer.add_key_value(key, plain, types[kind], types[element] if element else None)


if __name__ == "__main__":
    write(Path(sys.argv[3]), sys.argv[1], sys.argv[2])
