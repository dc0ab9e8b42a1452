"""Importance matrices: the mean square of each input column of each matrix, over a text. Knows no model.

Written and read as llama.cpp's GGUF file (tools/imatrix, common/imatrix-loader.cpp): `<tensor>.in_sum2` holds the
sums of squares per column, `<tensor>.counts` the number of rows summed, both float32; of a tensor of experts they hold
a row for each. Read, too: its older binary
file, which holds | int32 entries | per entry: name, int32 calls, int32 n, n float32 | int32 chunks | text's name |
with strings behind an int32 length.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.atomic_file import AtomicFile, check_destination
from edge_gemma.errors import ModelFormatError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, StringArray
from edge_gemma.gguf.values import Metadata, string, strings, u32

from .checkpoint.stand_ins import BEGIN, stand_in
from .output.writer import TensorInfo, encode_header

Floats = NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_LEGACY_ENTRIES = 16384
MAX_LEGACY_NAME = 4096


@dataclass(frozen=True)
class ImportanceMatrix:
    """`means`: tensor name -> mean square of each input column, float32 (columns,) or (experts, columns); where they
    come from; `unseen`: how many experts saw no row. These have ones."""

    means: dict[str, Floats]
    datasets: tuple[str, ...]
    chunks: int
    unseen: int = 0


Counts = int | Mapping[str, NDArray[np.integer]]
"""Rows that were summed: of every tensor, or of each one's experts."""


def of_sums(
    sums: Mapping[str, NDArray[np.floating]], counts: Counts, *, datasets: Sequence[str], chunks: int
) -> ImportanceMatrix:
    """What would be read if these sums were written."""
    made = {name: _means(total.astype(np.float32), _counts_of(counts, name)) for name, total in sums.items()}
    return ImportanceMatrix({n: m for n, (m, _) in made.items()}, tuple(datasets), chunks, _total(made))


def read(path: str | os.PathLike[str]) -> dict[str, Floats]:
    """Tensor name -> mean square of each input column, float32 (columns,) or (experts, columns), finite, not negative.

    A matrix that saw no row has ones, as llama.cpp takes it. Raises OSError, or ModelFormatError naming the entry.
    """
    return load(path).means


def load(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """The whole file; see `read`."""
    with Path(path).open("rb") as file:
        begin = file.read(BEGIN)
    if begin and (reason := stand_in(begin)) is not None:
        raise _error(Path(path), "beginning", reason)
    return _load_gguf(Path(path)) if begin.startswith(b"GGUF") else _load_legacy(Path(path))


def write(
    path: str | os.PathLike[str],
    sums: Mapping[str, NDArray[np.floating]],
    counts: Counts,
    *,
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
    force: bool = False,
) -> None:
    """Write sums of squares, tensor name -> (columns,) or (experts, columns), and of how many rows they are: `chunks`
    chunks of `chunk_size` tokens.

    `datasets` names the texts. Raises OutputError when the file cannot be written, OSError for a path that cannot be
    used; the file is complete or absent.
    """
    target = Path(path)
    check_destination(target, force=force, sources=[])
    arrays: dict[str, Floats] = {}
    for name in sorted(sums):
        arrays[name + SUMS] = sums[name].astype("<f4")
        found = _counts_of(counts, name).astype("<f4")
        arrays[name + COUNTS] = found if sums[name].ndim == 1 else found.reshape(-1, 1)
    metadata: Metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings([name.encode() for name in datasets]),
        "imatrix.chunk_count": u32(chunks),
        "imatrix.chunk_size": u32(chunk_size),
    }
    infos = [TensorInfo(name, a.shape, FORMATS["F32"], a.nbytes) for name, a in arrays.items()]
    header = encode_header(metadata, infos)
    with AtomicFile(target, len(header) + sum(info.padded for info in infos), force=force) as file:
        file.write(header)
        for info, array in zip(infos, arrays.values(), strict=True):
            file.write(array.tobytes().ljust(info.padded, b"\0"))


def _counts_of(counts: Counts, name: str) -> NDArray[np.float32]:
    """(1,) or (experts,)"""
    return np.array([counts], np.float32) if isinstance(counts, int) else counts[name].astype(np.float32).reshape(-1)


def _means(sums: Floats, counts: Floats) -> tuple[Floats, int]:
    """Sums over counts, ones where nothing was counted, in the shape of the sums; and of how many experts that is."""
    by_expert = sums.reshape(len(counts), -1)
    seen = counts > 0
    means = np.where(seen[:, None], by_expert / np.where(seen, counts, np.float32(1))[:, None], np.float32(1))
    return means.reshape(sums.shape), int((~seen).sum()) if len(counts) > 1 else 0


def _total(made: Mapping[str, tuple[Floats, int]]) -> int:
    """Experts that saw nothing, over all tensors."""
    return sum(unseen for _, unseen in made.values())


def quantized_with(name: str, matrix: ImportanceMatrix) -> Metadata:
    """What llama-quantize says in a file of the matrix it was made with; `name` is its file, without folder."""
    keys = {"quantize.imatrix.file": string(name)}
    if matrix.datasets:
        keys["quantize.imatrix.dataset"] = string(", ".join(matrix.datasets))
    keys["quantize.imatrix.entries_count"] = u32(len(matrix.means))
    if matrix.chunks:
        keys["quantize.imatrix.chunks_count"] = u32(matrix.chunks)
    return keys


# ---- reading -----------------------------------------------------------------------------------------------------


def _load_gguf(path: Path) -> ImportanceMatrix:
    with GgufFile.open(path) as file:
        keys = file.metadata
        if keys.string("general.type") != "imatrix":
            raise keys.error("general.type", "is not 'imatrix': this is no importance matrix")
        names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
        made = {name: _entry(path, name, _values(file, name + SUMS), _values(file, name + COUNTS)) for name in names}
        datasets = keys.strings("imatrix.datasets") if "imatrix.datasets" in keys else ()
        means = {name: entry for name, (entry, _) in made.items()}
        return replace(_checked(path, means, datasets, keys.u32("imatrix.chunk_count", 0)), unseen=_total(made))


def _values(file: GgufFile, name: str) -> Floats:
    if name not in file.tensors:
        raise _error(file.path, name, "is missing")
    tensor = file.tensors[name]
    if tensor.format.name != "F32":
        raise _error(file.path, name, f"is {tensor.format.name}, expected F32")
    return file.data(tensor).copy().view("<f4").reshape(-1)


def _entry(path: Path, name: str, sums: Floats, counts: Floats) -> tuple[Floats, int]:
    """Means, in rows where there are several counts, and how many of these are 0."""
    for count in counts:
        if not 0 <= count < np.inf:
            raise _error(path, name, f"has a count of {count}")
    if sums.size % len(counts):
        raise _error(path, name, f"has {sums.size} sums for {len(counts)} experts")
    return _means(sums if len(counts) == 1 else sums.reshape(len(counts), -1), counts)


def _load_legacy(path: Path) -> ImportanceMatrix:
    reader = _Legacy(path)
    entries = reader.entries()
    means = dict(reader.entry(i) for i in range(entries))
    if reader.at == len(reader.raw):  # what follows is optional
        return _checked(path, means, (), 0)
    chunks = reader.int32("number of chunks", 0, 2**31 - 1)
    datasets = (reader.text("text's name"),) if reader.at < len(reader.raw) else ()
    return _checked(path, means, datasets, chunks)


class _Legacy:
    """Reads the older format front to back; every length is checked before it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        self.at = 0

    def entries(self) -> int:
        """Their number, which is what the file begins with."""
        count: int = struct.unpack("<i", self._take(4, "number of entries"))[0]
        if not 1 <= count <= MAX_LEGACY_ENTRIES:
            raise self._error("beginning", "this is no importance matrix")
        return count

    def entry(self, number: int) -> tuple[str, Floats]:
        """Name and means of the next entry."""
        name = self.text(f"name of entry {number}")
        calls = self.int32(f"calls of {name}", 0, 2**31 - 1)
        size = self.int32(f"values of {name}", 1, 2**31 - 1)
        sums = np.frombuffer(self._take(4 * size, name), "<f4")
        return name, (sums / np.float32(max(calls, 1))).astype(np.float32, copy=False)

    def text(self, what: str) -> str:
        """A string behind its length."""
        data = self._take(self.int32(f"length of the {what}", 0, MAX_LEGACY_NAME), what)
        return data.decode("utf-8", "replace")

    def int32(self, what: str, low: int, high: int) -> int:
        """A number in low..high."""
        value: int = struct.unpack("<i", self._take(4, what))[0]
        if not low <= value <= high:
            raise self._error(what, f"{value} is outside {low}..{high}")
        return value

    def _take(self, size: int, what: str) -> bytes:
        if self.at + size > len(self.raw):
            raise self._error(what, "the file is cut off, or is no importance matrix")
        self.at += size
        return self.raw[self.at - size : self.at]

    def _error(self, what: str, message: str) -> ModelFormatError:
        return ModelFormatError(message, field=what, offset=self.at, path=str(self.path))


def _checked(
    path: Path, means: dict[str, Floats], datasets: StringArray | Sequence[str], chunks: int
) -> ImportanceMatrix:
    if not means:
        raise _error(path, "importance matrix", "has no entries")
    for name, values in means.items():
        if not (np.isfinite(values) & (values >= 0)).all():
            raise _error(path, name, "has a value that is negative, infinite or NaN")
    return ImportanceMatrix(means, tuple(_decoded(datasets)), chunks)


def _decoded(names: StringArray | Sequence[str]) -> Iterator[str]:
    for name in names:
        yield name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _error(path: Path, field: str, message: str) -> ModelFormatError:
    return ModelFormatError(message, field=field, path=str(path))
