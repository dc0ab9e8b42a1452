"""Is a file sound, unchanged since it was written, and what its source says? Knows no kernel and no writing.

It goes by the provenance that `output/provenance.py` wrote; a file without it is checked for the rest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.progress import Progress

from . import blocks
from .checkpoint.source import Source, SourceTensor
from .output.provenance import ERRORS, HASH_WORDS, HASHES, NAMES, SOURCE, ErrorSum, measure, names_sha256, sampled
from .output.writer import TensorInfo

SLAB_BYTES = 4 << 20
UNRELATED = 0.7
"""A relative error that no format makes of Gemma's weights: the tensor is another one. Q2_K makes 0.3."""
SAME = 1e-3
"""How far, relatively, a measured error may be from the one in the file: float32 and other CPUs' sums."""

FLOAT16_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ1_S": (0,),
    "IQ1_M": (), "MXFP4": (),
}  # fmt: skip
"""Where in a block its float16 scales and minima are: the only bytes of it that could be no finite number. The scales
of the last two are of another kind."""

E8M0_NAN = 0xFF
"""The one scale of MXFP4 that is no number, by its specification; ggml takes it for 2^128."""


@dataclass
class Verification:
    """`problems`: one line each, none if all is well. `errors`: relative error of each tensor from the source."""

    tensors: int
    has_provenance: bool
    problems: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No problem."""
        return not self.problems


@dataclass(frozen=True)
class _Provenance:
    """What the file says of its tensors, by name; nothing if it was made for `other_tensors`."""

    hashes: dict[str, bytes]
    errors: dict[str, float]
    source: str
    other_tensors: bool = False


def verify(path: Path, against: Source | None = None, progress: Progress | None = None) -> Verification:
    """Check the model file `path`, and with `against` compare it with the source it was made of.
    `progress` counts bytes of the file's tensors.

    Raises ModelFormatError for a file that does not run at all, OSError if it cannot be read.
    """
    with GgufFile.open(path, strict=True) as file:
        weights = Weights.bind(file, read_config(file))
        provenance = _provenance(file)
        result = Verification(len(file.tensors), provenance is not None)
        if provenance is not None and provenance.other_tensors:
            result.problems.append("the provenance is that of a file of other tensors, or in another order")
        total, done = sum(tensor.nbytes for tensor in file.tensors.values()), 0
        for tensor in file.tensors.values():
            _check_data(file, tensor, provenance, result)
            done += tensor.nbytes
            if progress is not None:
                progress(done, total, tensor.name)
        if against is not None:
            _check_source(file, weights, against, provenance, result)
    return result


def _provenance(file: GgufFile) -> _Provenance | None:
    """The file's own, None if it has none. Raises ModelFormatError for one that is broken."""
    keys = file.metadata
    if HASHES not in keys:
        return None
    names = list(file.tensors)
    if keys.string(NAMES) != names_sha256(names):
        return _Provenance({}, {}, keys.string(SOURCE), other_tensors=True)
    words = keys.int_array(HASHES, HASH_WORDS * len(names)).astype("<u4").reshape(len(names), HASH_WORDS)
    errors = keys.float_array(ERRORS, len(names)).tolist()
    hashes = {name: row.tobytes() for name, row in zip(names, words, strict=True)}
    return _Provenance(hashes, dict(zip(names, errors, strict=True)), keys.string(SOURCE))


# ---- the file alone ----------------------------------------------------------------------------------------------


def _check_data(file: GgufFile, tensor: Tensor, provenance: _Provenance | None, result: Verification) -> None:
    """Finite numbers, and the bytes that were written."""
    data, digest, bad = file.data(tensor), hashlib.sha256(), 0
    for start, stop in _slabs(len(data), tensor.row_bytes):
        digest.update(data[start:stop].data)
        bad += count_not_finite(data[start:stop], tensor.format.name) if tensor.is_executed else 0
    if bad:
        what = "values" if tensor.format.is_float else "scales"
        result.problems.append(f"{tensor.name}: {bad} {what} are NaN or infinite")
    expected = provenance.hashes.get(tensor.name) if provenance else None
    if expected is not None and digest.digest() != expected:
        result.problems.append(f"{tensor.name}: was changed after it was written (SHA-256 is another)")


def count_not_finite(data: NDArray[np.uint8], name: str) -> int:
    """How many float values, or scales and minima of blocks, in rows of a format are no finite numbers."""
    if name == "F32":
        return int((~np.isfinite(data.view("<f4"))).sum())
    if name == "BF16":
        return int(((data.view("<u2") & 0x7F80) == 0x7F80).sum())
    if name == "F16":
        return int(((data.view("<u2") & 0x7C00) == 0x7C00).sum())
    block = data.reshape(-1, FORMATS[name].nbytes)
    if name == "MXFP4":
        return int((block[:, 0] == E8M0_NAN).sum())
    if name == "IQ1_M":  # the upper byte of its float16 is in the upper halves of two bytes
        return int(((block[:, 55] & 0x70 | block[:, 53] >> 4 & 0x0C) == 0x7C).sum())
    return sum(int(((block[:, at + 1] & 0x7C) == 0x7C).sum()) for at in FLOAT16_AT[name])


def _slabs(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, SLAB_BYTES // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


# ---- the file and its source -------------------------------------------------------------------------------------


def _check_source(
    file: GgufFile, weights: Weights, source: Source, provenance: _Provenance | None, result: Verification
) -> None:
    """The same tensors, each as far from the source's as its provenance says, and the very source."""
    theirs = {tensor.name: tensor for tensor in source.tensors}
    ours = {tensor.name: tensor for tensor in weights.tensors()}
    for name in sorted(theirs.keys() ^ ours.keys()):
        result.problems.append(f"{name}: is not in the {'file' if name in theirs else 'source'}")
    for name in (name for name in ours if name in theirs):
        _check_error(file, ours[name], theirs[name], provenance, result)
    if provenance is not None and source_sha256(source) != provenance.source:
        result.problems.append("the source is not the one the file was made of (SHA-256 is another)")


def _check_error(
    file: GgufFile, tensor: Tensor, source: SourceTensor, provenance: _Provenance | None, result: Verification
) -> None:
    if tensor.shape != source.shape:
        result.problems.append(f"{tensor.name}: has shape {tensor.shape}, in the source {source.shape}")
        return
    error = relative_error(file, tensor, source)
    result.errors[tensor.name] = error
    expected = provenance.errors.get(tensor.name) if provenance else None
    if not error <= UNRELATED:
        result.problems.append(f"{tensor.name}: relative error {error:.3g}: this is not the source's tensor, rounded")
    elif expected is not None and not math.isclose(error, expected, rel_tol=SAME, abs_tol=1e-9):
        result.problems.append(f"{tensor.name}: relative error {error:.6g}, by its provenance {expected:.6g}")


def relative_error(file: GgufFile, tensor: Tensor, source: SourceTensor) -> float:
    """RMS(tensor - source) / RMS(source) over the sampled rows; NaN if the tensor has NaNs."""
    info = TensorInfo(tensor.name, tensor.shape, tensor.format, tensor.nbytes)
    data, total = file.data(tensor), ErrorSum()
    with np.errstate(invalid="ignore", over="ignore"):
        for row in range(0, source.rows, sampled(source.rows, source.columns)):
            values = blocks.decode(np.ascontiguousarray(source.raw(row, row + 1)), source.format.name)
            values = values.reshape(1, -1) + np.float32(source.shift)
            total.add(measure(values, data[row : row + 1], info, row))
        return total.relative


def source_sha256(source: Source) -> str:
    """As `edge_gemma.source.sha256` has it."""
    digest = hashlib.sha256()
    for tensor in source.tensors:
        for start, stop in _slabs(tensor.rows, tensor.row_bytes):
            digest.update(np.ascontiguousarray(tensor.raw(start, stop)).data)
    return digest.hexdigest()
