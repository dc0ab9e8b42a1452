"""What a file will hold, known before any of it is made: the format and size of each tensor. Converts nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import BlockFormat
from edge_gemma.gguf.values import Metadata, string, u32
from edge_gemma.models.tensor_table import OUTPUT, layer_and_role

from . import presets
from .checkpoint.metadata import QUANTIZATION_VERSION
from .checkpoint.source import Source, SourceTensor
from .output.provenance import Provenance
from .output.writer import TensorInfo, encode_header
from .recipe import MIXES, PRESETS, TYPES, Model, Overrides, check_patterns, choose, kept

Importance = Mapping[str, NDArray[np.float32]]
AS_REFERENCE = ("Q4_0", "Q8_0")
LEAST_IMPORTANCE = 1e-3  # of the mean: a column that the text never used may matter to another


@dataclass(frozen=True)
class Plan:
    """Metadata of a file to be, and its tensors, in the order of the source's."""

    type: str
    source: Source
    infos: tuple[TensorInfo, ...]
    metadata: Metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each padded."""
        return sum(info.padded for info in self.infos)

    def header(self, more: Metadata) -> bytes:
        """What precedes the tensors, with `more` metadata."""
        return encode_header(self.metadata | more, self.infos)

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors' data."""
        weights = sum(tensor.rows * tensor.columns for tensor in self.source.tensors)
        return 8 * sum(info.nbytes for info in self.infos) / weights


def check_type(type: str) -> None:
    """Raise CheckpointError unless files of this type are written."""
    if type not in TYPES:
        raise CheckpointError(f"type {type!r} is not written; one of {', '.join(TYPES)}")


def make_plan(source: Source, type: str, overrides: Overrides, importance: Importance | None) -> Plan:
    """The plan of a file of `type` made from `source`. Raises CheckpointError for what cannot be done."""
    if importance is not None:
        _check_importance(source, importance)
    mix = MIXES["F32"]
    check_patterns(overrides, (t.name for t in source.tensors if kept(mix, t.name, t.shape, t.format) is None))
    model, tied = _model(source, importance is not None), all(t.name != OUTPUT for t in source.tensors)
    if type in PRESETS:
        spare = _own_header(source)
        formats = presets.assign(type, model, source.tensors, overrides, tied=tied, spare=spare)
        file_type = PRESETS[type].file_type
    else:
        formats = [
            choose(MIXES[type], model, t.name, t.shape, overrides, tied=tied, stored=t.format) for t in source.tensors
        ]
        file_type = MIXES[type].file_type
    infos = tuple(map(_info, source.tensors, formats))
    return Plan(type, source, infos, _metadata(source, file_type))


def check_source(plan: Plan) -> None:
    """Raise CheckpointError if a quantized tensor would be quantized again."""
    for tensor, info in zip(plan.source.tensors, plan.infos, strict=True):
        stored = tensor.merged or tensor.format
        if not stored.is_float and (tensor.merged or stored != info.format):
            raise CheckpointError(
                f"{tensor.origin}: is {stored.name} already, and its errors would add to those of "
                f"{info.format.name}; pass --requantize (requantize=True) to convert it all the same"
            )


def column_weights(made: Plan, importance: Importance | None, info: TensorInfo) -> NDArray[np.float32] | None:
    """The weights of the columns of a tensor, (matrices, columns), of mean 1 in each; None if they are equal.

    An expert that no token of the text chose has equal ones.
    Without weights Q4_0 and Q8_0 are as everybody rounds them. That is right in files of these types, which checkpoints
    may have been trained for. In others they stand for a format that does not fit, and equal weights let their scales
    be searched for as those of all other formats are.
    """
    columns, matrices = info.shape[-1], _matrices(info.shape)
    means = None if importance is None else importance.get(info.name)
    if means is None or np.float32(means.mean(dtype=np.float64)) <= 0:
        return np.ones((matrices, columns), np.float32) if _searched(made.type, info) else None
    return np.stack([_weights_of(row) for row in np.broadcast_to(means.reshape(-1, columns), (matrices, columns))])


def _weights_of(means: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = np.float32(means.mean(dtype=np.float64))
    if mean <= 0:
        return np.ones_like(means)
    weights: NDArray[np.float32] = np.maximum(means / mean, LEAST_IMPORTANCE).astype(np.float32)
    return weights


def _matrices(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 2 else 1


def weighted_formats(made: Plan, importance: Importance | None) -> set[str]:
    """Formats of which a tensor has column weights."""
    return {info.format.name for info in made.infos if column_weights(made, importance, info) is not None}


def _searched(type: str, info: TensorInfo) -> bool:
    return type not in AS_REFERENCE and info.format.name in AS_REFERENCE


def _check_importance(source: Source, importance: Importance) -> None:
    known = {tensor.name: tensor.shape for tensor in source.tensors}
    if not known.keys() & importance.keys():
        raise CheckpointError("the importance matrix names no tensor of this model")
    for name in sorted(known.keys() & importance.keys()):
        columns, matrices, found = known[name][-1], _matrices(known[name]), importance[name]
        if found.size not in (columns, matrices * columns):
            raise CheckpointError(f"importance matrix: {name} has {found.size} columns, not {matrices * columns}")


def _model(source: Source, importance: bool) -> Model:
    config = source.config
    places = (layer_and_role(tensor.name) for tensor in source.tensors)
    return Model(
        len(config.layers),
        config.n_heads // config.layers[0].n_kv_heads,
        importance,
        architecture=config.architecture,
        experts=config.experts.count if config.experts else 0,
        values=tuple(place[0] for place in places if place is not None and place[1] == "attn_v"),
    )


def _info(tensor: SourceTensor, chosen: BlockFormat) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.shape, chosen, tensor.rows * chosen.row_bytes(tensor.columns))


def _metadata(source: Source, file_type: int) -> Metadata:
    own = {"general.file_type": u32(file_type), "general.quantization_version": u32(QUANTIZATION_VERSION)}
    return {"general.architecture": string("")} | source.metadata | own


def _own_header(source: Source) -> int:
    """Bytes that our files' headers have and those of others have not."""
    own = {key: value for key, value in source.metadata.items() if key.startswith("edge_gemma.")}
    provenance = Provenance([tensor.name for tensor in source.tensors], with_quality=True).metadata()
    return len(encode_header(own | provenance, []))


def formats_used(infos: Sequence[TensorInfo]) -> list[str]:
    """Names of the formats in a file."""
    return sorted({info.format.name for info in infos})
