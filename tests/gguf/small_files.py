"""Files of one or two tensors, made without code of ours, and how one is refused."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import psutil
import pytest

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from tests.gguf_builder import ARRAY, Builder, TensorRecord

MAX_GROWTH = 64 * 2**20


def plain(*keys: tuple[str | bytes, bytes], tensors: list[TensorRecord] | None = None, **fields: object) -> bytes:
    """A file of one good tensor (or `tensors`), with the given keys."""
    default = [TensorRecord("a", (32,)), TensorRecord("b", (32, 2))]
    return Builder(keys=list(keys), tensors=default if tensors is None else tensors, **fields).build()


def one(dims: tuple[int, ...] = (32,), name: str | bytes = "a", **fields: object) -> bytes:
    return plain(tensors=[TensorRecord(name, dims, **fields)])


def header(n_tensors: int, n_keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys)


def nested(*arrays: bytes) -> bytes:
    """An array of `arrays`, given with the type that an array inside another does not have."""
    return struct.pack("<IIQ", ARRAY, ARRAY, len(arrays)) + b"".join(a[4:] for a in arrays)


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def refused(path: Path, **options: object) -> ModelFormatError:
    """Open `path`, which must fail in the one allowed manner, with little work and without memory."""
    before, start = memory(), time.process_time()
    with pytest.raises(ModelFormatError) as caught:
        GgufFile.open(path, **options)
    assert time.process_time() - start < 1
    assert memory() - before < MAX_GROWTH
    assert type(caught.value) is ModelFormatError
    return caught.value
