"""`Weights`: the tensors of a model under their names, each checked for presence, shape and type.

Knows no architecture, only tables of tensors, and no maths: what a tensor is multiplied with is the model's business.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from edge_gemma.errors import ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.gguf.metadata import shown
from edge_gemma.models.tensor_table import TensorSpec

MIN_ROWS = 16
COLUMN_STEP = 32
ADDRESS_STEP = 32
# Ollama keeps the towers for images and sound in the same file; the text model is the same without them.
TOWER_PREFIXES = ("v.", "mm.", "a.")
# How llama.cpp names what a text model computes with. One that the architecture lacks would be left out of its results.
TEXT_PREFIXES = ("blk.", "output", "token_", "rope_", "position_embd", "per_layer_", "altup_", "dense_")
NAMES_SHOWN = 5


class LayerWeights:
    """The tensors of one layer, or those of no layer, each an attribute by its key: `attn_norm`, `ffn_down`, ..."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __getattr__(self, role: str) -> Tensor:
        try:
            return self._tensors[role]
        except KeyError:
            raise AttributeError(f"no tensor {role} here ({', '.join(self._tensors)} are)") from None

    def get(self, role: str) -> Tensor | None:
        """The tensor, None where there is none."""
        return self._tensors.get(role)


class Described(Protocol):
    """What `Weights.bind` asks of a configuration."""

    @property
    def architecture(self) -> str:
        """For messages."""

    @property
    def layers(self) -> Sequence[object]:
        """As many as there are layers."""

    def tensors(self) -> list[TensorSpec]:
        """Every tensor."""

    def unused_tensors(self) -> list[TensorSpec]:
        """What files may hold that nothing reads."""


@dataclass(frozen=True)
class Weights:
    """All tensors of the text model. `output` is `token_embd` where the two are tied."""

    token_embd: Tensor
    output_norm: Tensor
    output: Tensor
    layers: tuple[LayerWeights, ...]
    outside: LayerWeights
    """All that belong to no layer."""
    rope_factors: tuple[float, ...] | None
    """What `rope_freqs` says, see `Rope.factors`."""
    bound: tuple[Tensor, ...]
    """Every tensor once, in the order of the model's table."""

    @classmethod
    def bind(cls, file: GgufFile, config: Described) -> Self:
        """Find every tensor that `config` asks for in `file`, and no other that takes part in a text model.

        Raises ModelFormatError for such a one, for missing, misshapen or misaligned tensors, for types that are not
        executed, and for norms that are not F32 or not finite. Warns of tensors that nothing here knows, which are
        ignored. Reads the norms; the matrices are not touched.
        """
        specs = [spec for spec in config.tensors() if not spec.optional or spec.name in file.tensors]
        _check_names(file, config, [spec.name for spec in specs])
        outside: dict[str, Tensor] = {}
        layers: list[dict[str, Tensor]] = [{} for _ in config.layers]
        for spec in specs:
            tensor = file.tensors[spec.name]
            _check_tensor(file, tensor, spec)
            (outside if spec.layer is None else layers[spec.layer])[spec.key] = tensor
        return cls(
            token_embd=outside["token_embd"],
            output_norm=outside["output_norm"],
            output=outside.get("output", outside["token_embd"]),
            layers=tuple(map(LayerWeights, layers)),
            outside=LayerWeights(outside),
            rope_factors=_rope_factors(file, outside.get("rope_freqs")),
            bound=tuple(file.tensors[spec.name] for spec in specs),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, a tied one too."""
        return iter(self.bound)


def _check_names(file: GgufFile, config: Described, expected: Iterable[str]) -> None:
    """The file has all the expected tensors, and no other that a text model computes with."""
    for name, tensor in file.tensors.items():
        if "attn_qkv" in name:
            raise _error(file, tensor, "fused attention weights are not supported; convert with q, k and v apart")
    missing = [name for name in expected if name not in file.tensors]
    if missing:
        raise ModelFormatError(f"missing tensors: {_listed(missing)}", field=missing[0], path=str(file.path))
    known = {*expected, *(spec.name for spec in config.unused_tensors())}
    extra = sorted(name for name in set(file.tensors) - known if not name.startswith(TOWER_PREFIXES))
    wrong = [name for name in extra if name.startswith(TEXT_PREFIXES)]
    if wrong:
        raise _error(file, file.tensors[wrong[0]], f"{config.architecture} has no such tensors: {_listed(wrong)}")
    if extra:
        warnings.warn(
            f"{file.path}: tensors that {config.architecture} does not have are ignored: {_listed(extra)}", stacklevel=4
        )


def _check_tensor(file: GgufFile, tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.shape != spec.shape:
        raise _error(file, tensor, f"has shape {tensor.shape}, the metadata asks for {spec.shape}")
    if not tensor.is_executed:
        raise _error(file, tensor, _not_executed(tensor))
    if file.data(tensor).ctypes.data % ADDRESS_STEP:
        raise _error(file, tensor, f"its data is not aligned to {ADDRESS_STEP} bytes")
    if len(spec.shape) == 1:
        _check_vector(file, tensor)
    else:
        _check_matrix(file, tensor)


def _check_vector(file: GgufFile, tensor: Tensor) -> None:
    if tensor.format.name != "F32":
        raise _error(file, tensor, f"a norm must be F32, this is {tensor.format.name}")
    finite = np.isfinite(file.data(tensor).view(np.float32).reshape(-1))
    if not finite.all():
        raise _error(file, tensor, f"entry {int(finite.argmin())} is not finite")


def _rope_factors(file: GgufFile, tensor: Tensor | None) -> tuple[float, ...] | None:
    if tensor is None:
        return None
    factors = file.data(tensor).view(np.float32).reshape(-1)
    if factors.min() <= 0:
        raise _error(file, tensor, f"entry {int(factors.argmin())} is not above 0")
    return tuple(factors.tolist())


def _check_matrix(file: GgufFile, tensor: Tensor) -> None:
    """Of a tensor of several matrices, each must be one and be aligned."""
    rows, columns = tensor.shape[-2:]
    min_rows = 1 if tensor.format.is_float else MIN_ROWS
    if rows < min_rows or columns % COLUMN_STEP:
        raise _error(
            file, tensor, f"{rows} x {columns}: rows must be at least {min_rows}, columns a multiple of {COLUMN_STEP}"
        )
    if len(tensor.shape) > 2 and rows * tensor.row_bytes % ADDRESS_STEP:
        raise _error(file, tensor, f"its matrices of {rows * tensor.row_bytes} bytes are not aligned to {ADDRESS_STEP}")


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
