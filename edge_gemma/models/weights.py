"""`Weights`: the tensors of a Gemma model under their names, each checked for presence, shape and type.

Knows no maths: what a tensor is multiplied with is `model.py`'s business.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from edge_gemma.errors import ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.gguf.metadata import shown
from edge_gemma.models.config import GemmaConfig

MIN_ROWS = 16
COLUMN_STEP = 32
ADDRESS_STEP = 32
# Ollama keeps the towers for images and sound in the same file; the text model is the same without them.
TOWER_PREFIXES = ("v.", "mm.", "a.")
# How llama.cpp names what a text model computes with. One that no Gemma has would be left out of its results.
TEXT_PREFIXES = ("blk.", "output", "token_", "rope_", "position_embd", "per_layer_", "altup_", "dense_")
NAMES_SHOWN = 5


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Each field is named as its tensor is: `blk.<layer>.<field>.weight`. None: not in this architecture."""

    attn_norm: Tensor
    attn_q: Tensor
    attn_k: Tensor
    attn_v: Tensor
    attn_output: Tensor
    ffn_norm: Tensor
    ffn_gate: Tensor
    ffn_up: Tensor
    ffn_down: Tensor
    post_attention_norm: Tensor | None
    post_ffw_norm: Tensor | None
    attn_q_norm: Tensor | None
    attn_k_norm: Tensor | None


@dataclass(frozen=True)
class Weights:
    """All tensors of the text model. `output` is `token_embd` where the two are tied."""

    token_embd: Tensor
    output_norm: Tensor
    output: Tensor
    layers: tuple[LayerWeights, ...]

    @classmethod
    def bind(cls, file: GgufFile, config: GemmaConfig) -> Self:
        """Find every tensor that `config` asks for in `file`, and no other that takes part in a text model.

        Raises ModelFormatError for such a one, for missing, misshapen or misaligned tensors, for types that are not
        executed, and for norms that are not F32 or not finite. Warns of tensors that nothing here knows, which are
        ignored. Reads the norms; the matrices are not touched.
        """
        expected = expected_shapes(config)
        if "output.weight" in file.tensors:
            expected["output.weight"] = expected["token_embd.weight"]
        _check_names(file, config, expected)
        for name, shape in expected.items():
            _check_tensor(file, file.tensors[name], shape)
        tensors = file.tensors
        return cls(
            token_embd=tensors["token_embd.weight"],
            output_norm=tensors["output_norm.weight"],
            output=tensors.get("output.weight", tensors["token_embd.weight"]),
            layers=tuple(_layer(tensors, i) for i in range(config.n_layers)),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, a tied one too."""
        yield self.token_embd
        yield self.output_norm
        if self.output is not self.token_embd:
            yield self.output
        for layer in self.layers:
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    yield tensor


def expected_shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, (rows, columns) or (n,), of every tensor of a tied model."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, config.d_model),
        "output_norm.weight": (config.d_model,),
    }
    per_layer = _layer_shapes(config)
    for i in range(config.n_layers):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in per_layer.items()}
    return shapes


def _layer_shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    D, F = config.d_model, config.d_ff
    q_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (D,),
        "attn_q": (q_width, D),
        "attn_k": (kv_width, D),
        "attn_v": (kv_width, D),
        "attn_output": (D, q_width),
        "ffn_norm": (D,),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
    }
    if config.post_norms:
        shapes |= {"post_attention_norm": (D,), "post_ffw_norm": (D,)}
    if config.qk_norm:
        shapes |= {"attn_q_norm": (config.head_dim,), "attn_k_norm": (config.head_dim,)}
    return shapes


def _layer(tensors: dict[str, Tensor], index: int) -> LayerWeights:
    found: dict[str, Any] = {f.name: tensors.get(f"blk.{index}.{f.name}.weight") for f in fields(LayerWeights)}
    return LayerWeights(**found)


def _check_names(file: GgufFile, config: GemmaConfig, expected: Iterable[str]) -> None:
    """The file has all the expected tensors, and no other that a text model computes with."""
    for name, tensor in file.tensors.items():
        if "attn_qkv" in name:
            raise _error(file, tensor, "fused attention weights are not supported; convert with q, k and v apart")
    missing = [name for name in expected if name not in file.tensors]
    if missing:
        raise ModelFormatError(f"missing tensors: {_listed(missing)}", field=missing[0], path=str(file.path))
    extra = sorted(name for name in set(file.tensors) - set(expected) if not name.startswith(TOWER_PREFIXES))
    wrong = [name for name in extra if name.startswith(TEXT_PREFIXES)]
    if wrong:
        raise _error(file, file.tensors[wrong[0]], f"{config.architecture} has no such tensors: {_listed(wrong)}")
    if extra:
        warnings.warn(f"{file.path}: tensors that no Gemma has are ignored: {_listed(extra)}", stacklevel=4)


def _check_tensor(file: GgufFile, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise _error(file, tensor, f"has shape {tensor.shape}, the metadata asks for {shape}")
    if not tensor.is_executed:
        raise _error(file, tensor, _not_executed(tensor))
    if file.data(tensor).ctypes.data % ADDRESS_STEP:
        raise _error(file, tensor, f"its data is not aligned to {ADDRESS_STEP} bytes")
    if len(shape) == 1:
        _check_vector(file, tensor)
    else:
        _check_matrix(file, tensor)


def _check_vector(file: GgufFile, tensor: Tensor) -> None:
    if tensor.format.name != "F32":
        raise _error(file, tensor, f"a norm must be F32, this is {tensor.format.name}")
    finite = np.isfinite(file.data(tensor).view(np.float32).reshape(-1))
    if not finite.all():
        raise _error(file, tensor, f"entry {int(finite.argmin())} is not finite")


def _check_matrix(file: GgufFile, tensor: Tensor) -> None:
    rows, columns = tensor.shape
    if rows < MIN_ROWS or columns % COLUMN_STEP:
        raise _error(
            file, tensor, f"{rows} x {columns}: rows must be at least {MIN_ROWS}, columns a multiple of {COLUMN_STEP}"
        )


def _not_executed(tensor: Tensor) -> str:
    return (
        f"its type {tensor.format.name} is known but not executed; get the model in one of {', '.join(FORMATS)}, or "
        "make it from the original checkpoint: edge-gemma quantize FOLDER OUT.gguf"
    )


def _error(file: GgufFile, tensor: Tensor, message: str) -> ModelFormatError:
    return ModelFormatError(message, field=shown(tensor.name), offset=tensor.offset, path=str(file.path))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(shown, names[:NAMES_SHOWN])) + more
