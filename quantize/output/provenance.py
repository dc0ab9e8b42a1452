"""What a written file says of its own making, as metadata: where from, how exact, which bytes. Knows no kernel.

| key | value |
|---|---|
| edge_gemma.version | of this package |
| edge_gemma.source.sha256 | SHA-256 of the data of the source's tensors, in the order of this file |
| edge_gemma.names.sha256 | SHA-256 of the tensors' names, each behind a line end but the first |
| edge_gemma.sha256 | SHA-256 of each tensor's bytes, in the order of the file, as 8 little-endian numbers each |
| edge_gemma.error | RMS(tensor - source) / RMS(source) of each, over the rows of `sampled` |
| edge_gemma.quality.* | with `--compare`: the fields of `Quality` |

Every value has its size before it is known, so the header is written once with zeros and at last over itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma import __version__
from edge_gemma.atomic_file import temporary
from edge_gemma.gguf.values import Metadata, Value, f32, string, u32

from .. import blocks
from .writer import TensorInfo

VERSION = "edge_gemma.version"
SOURCE = "edge_gemma.source.sha256"
NAMES, HASHES, ERRORS = "edge_gemma.names.sha256", "edge_gemma.sha256", "edge_gemma.error"
HASH_WORDS = 8
QUALITY = "edge_gemma.quality."

SAMPLE_VALUES = 2**18
"""About so many values of a tensor are decoded again: they give its error to 0.3%."""
NO_HASH = "0" * 64


@dataclass(frozen=True)
class Quality:
    """The file beside its source on a text: what `edge-gemma compare` measures."""

    text_sha256: str
    context: int
    tokens: int
    kl_mean: float
    kl_p99: float
    top_1: float
    perplexity_ratio: float


Compare = Callable[[Path, Path], Quality]
"""compare(written file, its source as a file that runs)"""

UNKNOWN = Quality(NO_HASH, 0, 0, 0.0, 0.0, 0.0, 0.0)


@dataclass
class ErrorSum:
    """Sums of squares of a tensor's errors and values, over some of its rows."""

    error: float = 0.0
    power: float = 0.0

    def add(self, other: ErrorSum) -> None:
        """More rows of the same tensor."""
        self.error += other.error
        self.power += other.power

    @property
    def relative(self) -> float:
        """RMS of the errors over RMS of the values; of zeros kept as zeros it is 0."""
        if self.power == 0:
            return 0.0 if self.error == 0 else math.inf
        return math.sqrt(self.error / self.power)


def sampled(rows: int, columns: int) -> int:
    """The error is measured on every so many-th row of a tensor, the first one included."""
    return max(1, rows * columns // SAMPLE_VALUES)


def measure(values: NDArray[np.float32], data: NDArray[np.uint8], info: TensorInfo, start: int) -> ErrorSum:
    """Errors of `data`, rows of a tensor from row `start` on, as decoded, from the `values` they were made of."""
    step = sampled(math.prod(info.shape[:-1]), info.shape[-1])
    first = -start % step
    exact = values[first::step].astype(np.float64)
    if not len(exact):
        return ErrorSum()
    decoded = blocks.decode(np.ascontiguousarray(data[first::step]), info.format.name).reshape(exact.shape)
    return ErrorSum(float(((decoded - exact) ** 2).sum()), float((exact**2).sum()))


class Provenance:
    """Gathers what is known of a file while it is written: all its rows, a stretch at a time, in the file's order."""

    def __init__(self, names: Sequence[str], *, with_quality: bool = False) -> None:
        """`names` of the tensors, in the file's order; `with_quality`: leave room for a `Quality`."""
        self._names = list(names)
        self._hashes = {name: hashlib.sha256() for name in self._names}
        self._errors = {name: ErrorSum() for name in self._names}
        self._source = hashlib.sha256()
        self.quality = UNKNOWN if with_quality else None

    def add_source(self, raw: NDArray[np.uint8]) -> None:
        """The next rows as they are in the source. May be called in another thread than `add`."""
        self._source.update(np.ascontiguousarray(raw).data)

    def add(self, name: str, data: NDArray[np.uint8], error: ErrorSum) -> None:
        """The next rows as they are written, and what `measure` says of them."""
        self._hashes[name].update(np.ascontiguousarray(data).data)
        self._errors[name].add(error)

    def metadata(self) -> Metadata:
        """All that is known so far. The size of its encoding never changes."""
        hashes = b"".join(self._hashes[name].digest() for name in self._names)
        errors = np.array([self._errors[name].relative for name in self._names], np.float32)
        result: Metadata = {
            VERSION: string(__version__),
            SOURCE: string(self._source.hexdigest()),
            NAMES: string(names_sha256(self._names)),
            HASHES: Value("ARRAY[UINT32]", np.frombuffer(hashes, "<u4")),
            ERRORS: Value("ARRAY[FLOAT32]", errors),
        }
        if self.quality is not None:
            result |= {QUALITY + field: _typed(value) for field, value in asdict(self.quality).items()}
        return result


def names_sha256(names: Iterable[str]) -> str:
    """As `edge_gemma.names.sha256` has it."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _typed(value: str | float) -> Value:
    if isinstance(value, str):
        return string(value)
    return u32(value) if isinstance(value, int) else f32(value)


def source_copy(target: Path) -> Path:
    """Where the source of `target` is put to be run, by `--calibrate` or `--compare`; removed afterwards."""
    return temporary(target, "source")
