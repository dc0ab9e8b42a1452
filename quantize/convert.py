"""`quantize`: any source to a GGUF file of a given type, in slabs of rows over a few threads.

The bytes do not depend on the number of threads. A few slabs are in memory at a time, whatever the model's size.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.config import GemmaConfig
from edge_gemma.errors import CheckpointError
from edge_gemma.gguf import GgufFile
from edge_gemma.quantize import blocks
from edge_gemma.quantize.atomic_file import AtomicFile, check_destination
from edge_gemma.quantize.gguf_source import open_gguf
from edge_gemma.quantize.hf_source import open_folder
from edge_gemma.quantize.lora import merge, open_adapter
from edge_gemma.quantize.metadata import QUANTIZATION_VERSION, Metadata, string, u32
from edge_gemma.quantize.recipe import MIXES, Mix, choose
from edge_gemma.quantize.source import Source, SourceTensor
from edge_gemma.quantize.writer import TensorInfo, encode_header
from edge_gemma.weights import Weights

SLAB_VALUES = 1 << 20  # 4 MiB as float32; with its source, temporaries and result about 16 MiB
MAX_THREADS = 8  # beyond that the memory for slabs grows and the disk is the limit

Progress = Callable[[int, int, str], None]
"""progress(bytes of the source done, of how many, name of the tensor)"""


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
    force: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    lora: Sequence[tuple[str | os.PathLike[str], float]] = (),
) -> QuantizeReport:
    """Convert `source`, a Hugging Face folder or a GGUF file, into the GGUF file `destination`.

    `lora`: folders of PEFT adapters, each with its scale, merged in this order before anything is quantized.

    `type`: F32, F16, BF16, Q8_0 or Q4_0; `recipe.py` has the table of what each tensor gets (norms stay F32, the
    embedding of a Q4_0 file is Q8_0). `threads`: default one per core this process may use, at most 8.

    Raises CheckpointError or ModelFormatError for a source that cannot be converted, OutputError when the file cannot
    be written, OSError for paths that cannot be used. After any of them the destination is as it was before.
    """
    started = time.perf_counter()
    if type not in MIXES:
        raise CheckpointError(f"type {type!r} is not written; one of {', '.join(MIXES)}")
    target = Path(destination)
    opened = merge(_open(Path(source)), [open_adapter(Path(path), scale) for path, scale in lora])
    check_destination(target, force=force, sources=opened.files)
    infos = [_info(MIXES[type], tensor) for tensor in opened.tensors]
    header = encode_header(_metadata(opened, MIXES[type]), infos)
    size = len(header) + sum(info.padded for info in infos)
    with AtomicFile(target, size, force=force) as file:
        file.write(header)
        _write_tensors(file, opened.tensors, infos, progress, threads or _default_threads())
        file.flush()
        _verify(file.partial)
    weights = sum(tensor.rows * tensor.columns for tensor in opened.tensors)
    return QuantizeReport(
        tensors=len(infos),
        bytes_in=sum(tensor.nbytes for tensor in opened.tensors),
        bytes_out=size,
        bits_per_weight=8 * sum(info.nbytes for info in infos) / weights,
        seconds=time.perf_counter() - started,
        notices=tuple(opened.notices),
    )


def _open(source: Path) -> Source:
    if source.is_dir():
        return open_folder(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if source.suffix in (".safetensors", ".json"):
        raise CheckpointError(f"{source}: name the folder of the checkpoint, not a file in it")
    return open_gguf(source)


def _info(mix: Mix, tensor: SourceTensor) -> TensorInfo:
    chosen = choose(mix, tensor.name, tensor.shape)
    return TensorInfo(tensor.name, tensor.shape, chosen, tensor.rows * chosen.row_bytes(tensor.columns))


def _metadata(source: Source, mix: Mix) -> Metadata:
    own = {"general.file_type": u32(mix.file_type), "general.quantization_version": u32(QUANTIZATION_VERSION)}
    return {"general.architecture": string("")} | source.metadata | own


def _default_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_THREADS)


def _verify(path: Path) -> None:
    """Open what was written as the runtime will; a file it refuses must never get its name."""
    with GgufFile.open(path, strict=True) as file:
        Weights.bind(file, GemmaConfig.from_gguf(file))


@dataclass(frozen=True)
class _Slab:
    """Rows [start, stop) of a tensor, to be written in the format of `info`."""

    tensor: SourceTensor
    info: TensorInfo
    start: int
    stop: int


def _slabs(tensors: list[SourceTensor], infos: list[TensorInfo]) -> Iterator[_Slab]:
    for tensor, info in zip(tensors, infos, strict=True):
        step = max(1, SLAB_VALUES // tensor.columns)
        for start in range(0, tensor.rows, step):
            yield _Slab(tensor, info, start, min(start + step, tensor.rows))


def _write_tensors(
    file: AtomicFile, tensors: list[SourceTensor], infos: list[TensorInfo], progress: Progress | None, threads: int
) -> None:
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
    try:
        for slab, data in _in_order(pool, _slabs(tensors, infos), ahead=threads + 1):
            file.write(data.data)
            if slab.stop == slab.tensor.rows:
                file.write(bytes(slab.info.padded - slab.info.nbytes))
            done += (slab.stop - slab.start) * slab.tensor.row_bytes
            if progress is not None:
                progress(done, total, slab.tensor.name)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, slabs: Iterator[_Slab], ahead: int
) -> Iterator[tuple[_Slab, NDArray[np.uint8]]]:
    """Each slab with its bytes, in order; no more than `ahead` are worked on or waiting."""
    waiting: deque[tuple[_Slab, Future[NDArray[np.uint8]]]] = deque()
    for slab in slabs:
        waiting.append((slab, pool.submit(_convert, slab)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _convert(slab: _Slab) -> NDArray[np.uint8]:
    tensor, info = slab.tensor, slab.info
    raw = tensor.raw(slab.start, slab.stop)
    values = blocks.decode(raw, tensor.format.name)
    _check_finite(values, slab)
    if tensor.format == info.format and tensor.shift == 0.0:
        return np.ascontiguousarray(raw)  # a second rounding of the same blocks could only lose
    if tensor.shift != 0.0:
        values = values + np.float32(tensor.shift)
    try:
        return blocks.encode(values, info.format.name)
    except blocks.OutOfRangeError as error:
        row = slab.start + error.row
        largest = float(np.abs(values[error.row]).max())
        where = f"{tensor.origin}: row {row}"
        raise CheckpointError(f"{where}: {largest:.6g} is too large for {info.format.name}") from None


def _check_finite(values: NDArray[np.float32], slab: _Slab) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    row = int(np.argmin(finite.all(axis=1)))
    bad, column = int((~finite[row]).sum()), int(np.argmin(finite[row]))
    where = f"{slab.tensor.origin}: row {slab.start + row}"
    raise CheckpointError(f"{where}: {bad} values are NaN or infinite, the first in column {column}")
