"""`quantize`: any source to a GGUF file of a given type. The bytes do not depend on the number of threads.

Knows the order of the steps, and not how tensors become bytes (`pipeline.py`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_gemma.atomic_file import AtomicFile, check_destination, claimed, in_use, remove_leftovers
from edge_gemma.cores import usable_processors
from edge_gemma.errors import CheckpointError, ModelFormatError, OutputError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.progress import Progress
from edge_gemma.text.tokenizer import Tokenizer

from . import blocks
from .checkpoint.gguf_source import open_gguf
from .checkpoint.hf_source import open_folder
from .checkpoint.lora import merge, open_adapter
from .checkpoint.meant import check_file, no_such_source, user_path
from .checkpoint.source import Source
from .imatrix import ImportanceMatrix, quantized_with
from .imatrix import load as load_imatrix
from .output.provenance import Compare, Provenance, source_copy
from .pipeline import write_tensors
from .plan import Importance, Plan, check_source, check_type, formats_used, make_plan, weighted_formats
from .recipe import Overrides

MAX_THREADS = 32  # beyond that the disk is the limit

Adapters = Sequence[tuple[str | os.PathLike[str], float]]
"""Folders of LoRA adapters, each with a factor."""
Calibrate = Callable[[Path], ImportanceMatrix]
"""From a file that runs, the importance matrix to quantize its source with."""
CALIBRATED = "(calibrated)"
"""Stands for the file of an importance matrix that was never in one."""


@dataclass(frozen=True)
class QuantizeReport:
    """What was written: number of tensors, bytes of tensor data read and of the file, bits per weight, seconds."""

    tensors: int
    bytes_in: int
    bytes_out: int
    bits_per_weight: float
    seconds: float
    notices: tuple[str, ...]


def quantize(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    type: str = "Q4_0",
    *,
    overrides: Overrides | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    calibrate: Calibrate | None = None,
    lora: Adapters = (),
    requantize: bool = False,
    compare: Compare | None = None,
    force: bool = False,
    progress: Progress | None = None,
    kernel_progress: Progress | None = None,
    threads: int | None = None,
) -> QuantizeReport:
    """Convert `source`, a Hugging Face folder or a GGUF file, into the GGUF file `destination`.

    `type`: one of `recipe.TYPES`; `overrides` replace its choice for single tensors. `imatrix`: a file of importance
    matrices, which weigh the errors of columns; `calibrate` makes one of the source as Q8_0, which is put beside the
    destination meanwhile. `lora`: adapters to merge, each with a factor. `requantize`: accept a source that is
    quantized already. `compare`: measures the file beside its source; what it says is written into the file.
    `threads`: default one per core this process may use, at most 32.
    `kernel_progress(done, total, name)` is called while kernels are compiled, once on a machine.

    Raises CheckpointError or ModelFormatError for a source that cannot be converted, OutputError when the file cannot
    be written, OSError for paths that cannot be used. After any of them the destination is as it was before.
    """
    started = time.perf_counter()
    target = user_path(destination)
    if calibrate is not None and imatrix is not None:
        raise ValueError("calibrate: there is an importance matrix already")
    made, importance = _planned(source, type, overrides, imatrix, lora)
    if not requantize:
        check_source(made)
    check_destination(target, force=force, sources=made.source.files)
    with claimed(target):
        if calibrate is not None:
            with _copy(user_path(source), target, "Q8_0", lora, progress, kernel_progress) as runs:
                matrix = calibrate(runs)
            made, importance = _weighted(made.source, type, overrides, CALIBRATED, matrix), matrix.means
        stored = {tensor.format.name for tensor in made.source.tensors}
        blocks.prepare(formats_used(made.infos), weighted_formats(made, importance), stored, kernel_progress)
        provenance = Provenance([info.name for info in made.infos], with_quality=compare is not None)
        header = made.header(provenance.metadata())
        size = len(header) + made.nbytes
        with AtomicFile(target, size, force=force) as file:
            file.write(header)
            write_tensors(file, made, importance, progress, threads or _default_threads(), provenance)
            file.rewrite_start(made.header(provenance.metadata()))
            if compare is not None:
                with _runnable(user_path(source), made.source, target, lora) as original:
                    provenance.quality = compare(file.partial, original)
                file.rewrite_start(made.header(provenance.metadata()))
            file.flush()
            _verify(file.partial, target)
    return _report(made, size, time.perf_counter() - started)


def _report(made: Plan, size: int, seconds: float) -> QuantizeReport:
    return QuantizeReport(
        tensors=len(made.infos),
        bytes_in=sum(tensor.nbytes for tensor in made.source.tensors),
        bytes_out=size,
        bits_per_weight=made.bits_per_weight,
        seconds=seconds,
        notices=tuple(made.source.notices),
    )


def plan(
    source: str | os.PathLike[str],
    type: str = "Q4_0",
    *,
    overrides: Overrides | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    lora: Adapters = (),
) -> Plan:
    """What `quantize` would write: the format and size of every tensor. Writes nothing; raises as `quantize` does."""
    return _planned(source, type, overrides, imatrix, lora)[0]


def _planned(
    source: str | os.PathLike[str],
    type: str,
    overrides: Overrides | None,
    imatrix: str | os.PathLike[str] | None,
    lora: Adapters,
) -> tuple[Plan, Importance | None]:
    check_type(type)
    if imatrix is None:
        return make_plan(open_source(source, lora), type, overrides or Overrides(), None), None
    matrix = load_imatrix(user_path(imatrix))
    return _weighted(open_source(source, lora), type, overrides, Path(imatrix).name, matrix), matrix.means


def _weighted(source: Source, type: str, overrides: Overrides | None, name: str, matrix: ImportanceMatrix) -> Plan:
    """The plan with an importance matrix, called `name`, which the file tells of."""
    if matrix.unseen:
        told = (
            f"importance matrix: the text reached none of {matrix.unseen} matrices of experts: they have equal weights"
        )
        source = replace(source, notices=[*source.notices, told])
    made = make_plan(source, type, overrides or Overrides(), matrix.means)
    return replace(made, metadata=made.metadata | quantized_with(name, matrix))


def open_source(source: str | os.PathLike[str], lora: Adapters = ()) -> Source:
    """The checkpoint `source`, a Hugging Face folder or a GGUF file, with adapters added, each times a factor.

    Raises CheckpointError, ModelFormatError or OSError.
    """
    opened = _open(os.fspath(source))
    return merge(opened, [open_adapter(user_path(path), scale) for path, scale in lora]) if lora else opened


def _open(given: str) -> Source:
    source = user_path(given)
    if source.is_dir():
        return open_folder(source)
    if not source.exists():
        raise no_such_source(source, given)
    check_file(source)
    return open_gguf(source)


@contextmanager
def _runnable(source: Path, opened: Source, target: Path, lora: Adapters) -> Iterator[Path]:
    """The source as a file that runs: itself, or an exact copy beside `target`, which is removed afterwards."""
    if not source.is_dir() and not lora:
        yield source
        return
    stored = {tensor.format.name for tensor in opened.tensors if len(tensor.shape) > 1}
    with _copy(source, target, stored.pop() if stored in ({"BF16"}, {"F16"}) else "F32", lora) as copy:
        yield copy


@contextmanager
def _copy(
    source: Path,
    target: Path,
    type: str,
    lora: Adapters,
    progress: Progress | None = None,
    kernel_progress: Progress | None = None,
) -> Iterator[Path]:
    """The source as a file of `type` beside `target`, which is removed afterwards."""
    copy = source_copy(target)
    remove_leftovers(target)
    with in_use(copy):
        try:
            quantize(source, copy, type, lora=lora, requantize=True, progress=progress, kernel_progress=kernel_progress)
            yield copy
        finally:
            copy.unlink(missing_ok=True)


def _default_threads() -> int:
    return min(usable_processors(), MAX_THREADS)


def _verify(written: Path, target: Path) -> None:
    """Open what was written as the runtime will; a file it refuses must never get its name."""
    try:
        with GgufFile.open(written, strict=True) as file:
            Weights.bind(file, read_config(file))
            Tokenizer.from_gguf(file)
    except ModelFormatError as error:
        reason = str(error).removeprefix(f"{written}: ")
        raise CheckpointError(f"{target} is not written, for it would not run: {reason}") from error
    except OSError as error:
        raise OutputError(f"{target}: cannot be read back: {os.strerror(error.errno or errno.EIO)}") from error
