"""LoRA adapters of PEFT, merged into a source while it is read: W + scale * alpha / r * B A. Knows no output format.

The sum is float32, over the ranks in their order, a slab of rows at a time: the bits do not depend on slabs or threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS
from edge_gemma.models.tensor_table import EMBEDDING, OUTPUT

from .. import blocks
from .folder import ADAPTERS, CheckpointFolder
from .head_order import in_pairs
from .lora_config import AdapterConfig, read_adapter_config
from .lora_names import Pair, pair_up
from .meant import no_such_source
from .own_output import own_output_notices
from .safetensors import read_safetensors
from .source import Source, SourceTensor
from .stored_tensor import StoredTensor
from .torch_file import read_torch

FACTOR_VALUES = 1 << 20  # of the factor A that are widened at a time, whatever its rank


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one matrix: factor * B A, with B (rows, rank) and A (rank, columns)."""

    b: StoredTensor
    a: StoredTensor
    factor: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix it belongs to."""
        return self.b.shape[0], self.a.shape[1]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of what is added, float32 (rows, columns)."""
        rank, columns = self.a.shape
        left = self.b.rows(start, stop)
        total = np.zeros((stop - start, columns), np.float32)
        step = max(1, FACTOR_VALUES // columns)
        for first in range(0, rank, step):
            last = min(first + step, rank)
            # Not `@`: BLAS adds in an order that depends on its threads and on the number of rows.
            total += np.einsum("rk,kc->rc", left[:, first:last], self.a.rows(first, last))
        return total * np.float32(self.factor)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: GGUF name of a matrix -> what is added to it."""

    path: Path
    config: AdapterConfig
    deltas: dict[str, Delta]
    files: list[Path]
    notices: list[str]


def open_adapter(path: Path, scale: float = 1.0) -> Adapter:
    """The adapter in folder `path`, times `scale`. Raises CheckpointError naming the file, tensor or key at fault."""
    if not math.isfinite(scale):
        raise CheckpointError(f"{path}: a scale of {scale} cannot be merged")
    _check_place(path)
    folder = CheckpointFolder(path)
    config = read_adapter_config(folder)
    file, tensors = _tensors(folder)
    pairs, vision = pair_up(tensors, str(file))
    if not pairs:
        raise CheckpointError(f"{file}: holds no LoRA matrices of the language model")
    deltas = {pair.target: _delta(pair, config, scale) for pair in pairs}
    notices = [f"{folder.path.name}: {vision} tensors for the vision tower left out"] if vision else []
    return Adapter(folder.path, config, deltas, [config.path, file], notices)


def _check_place(path: Path) -> None:
    """Raise CheckpointError for what is no folder, with what may be meant."""
    if path.is_dir():
        return
    if path.exists():
        raise CheckpointError(f"{path}: not a folder; name the folder of the adapter, {path.absolute().parent}")
    raise CheckpointError(f"{path}: not a folder: {no_such_source(path, str(path))}")


def _tensors(folder: CheckpointFolder) -> tuple[Path, dict[str, StoredTensor]]:
    for name, read in zip(ADAPTERS, (read_safetensors, read_torch), strict=True):
        if (path := folder.file(name)) is not None:
            return path, read(path)
    raise CheckpointError(f"{folder.path}: neither {ADAPTERS[0]} nor {ADAPTERS[1]}; is the download complete?")


def _delta(pair: Pair, config: AdapterConfig, scale: float) -> Delta:
    a, b = pair.a, pair.b
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{a.where} of shape {a.shape} and {b.name} of shape {b.shape} cannot be multiplied")
    rank = config.rank_of(pair.module)
    if a.shape[0] != rank:
        raise CheckpointError(f"{a.where} has rank {a.shape[0]}; {config.path.name} says {rank}")
    return Delta(b, a, scale * config.factor_of(pair.module))


def merge(source: Source, adapters: Sequence[Adapter]) -> Source:
    """`source` with each adapter added in turn.

    An adapter of the output of a tied model gives it an output of its own. Raises CheckpointError if an adapter changes
    a matrix the model lacks, or one of another shape.
    """
    tensors = {tensor.name: tensor for tensor in source.tensors}
    heads = {spec.name: spec.paired_heads for spec in source.config.tensors()}
    notices = list(source.notices)
    for adapter in adapters:
        if OUTPUT in adapter.deltas and OUTPUT not in tensors:
            notices += _untie(tensors, adapter, source)
        for name, delta in adapter.deltas.items():
            _check_fits(adapter, delta, tensors.get(name), name)
            tensors[name] = _merged(tensors[name], delta, heads[name])
        notices += [f"merged {adapter.path.name} into {len(adapter.deltas)} matrices", *adapter.notices]
    files = source.files + [file for adapter in adapters for file in adapter.files]
    return replace(source, tensors=list(tensors.values()), files=files, notices=notices)


def _untie(tensors: dict[str, SourceTensor], adapter: Adapter, source: Source) -> list[str]:
    """Add an output to `tensors`, which starts as the embedding. Returns what to tell.

    A running adapter of PEFT leaves the embedding as it is, so the two are no longer one.
    """
    tensors[OUTPUT] = replace(tensors[EMBEDDING], name=OUTPUT)
    text = f"{adapter.path.name} changes the output, which was the embedding: it gets a matrix of its own"
    return [text, *own_output_notices(source.config.model)]


def _check_fits(adapter: Adapter, delta: Delta, tensor: SourceTensor | None, name: str) -> None:
    made_for = f"; the adapter was made for {adapter.config.base!r}" if adapter.config.base else ""
    if tensor is None:
        raise CheckpointError(f"{delta.a.where}: the model has no {name}{made_for}")
    if tensor.shape != delta.shape:
        has = f"{name} of the model has shape {tensor.shape}, the adapter's change {delta.shape}"
        raise CheckpointError(f"{delta.a.where}: {has}{made_for}")


def _merged(tensor: SourceTensor, delta: Delta, paired_heads: int) -> SourceTensor:
    """With `delta`, whose rows come in a checkpoint's order, added; paired_heads: see `TensorSpec`."""
    added = in_pairs(delta.rows, tensor.rows // paired_heads) if paired_heads else delta.rows

    def raw(start: int, stop: int) -> NDArray[np.uint8]:
        values = blocks.decode(tensor.raw(start, stop), tensor.format.name) + added(start, stop)
        return values.astype("<f4", copy=False).view(np.uint8)

    origin = f"{tensor.origin} + {delta.a.file.path.parent.name}"
    return replace(tensor, origin=origin, format=FORMATS["F32"], raw=raw, merged=tensor.merged or tensor.format)
