"""Files as torch.save writes them, made without torch: the pickle by hand, the archive by zipfile."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.quantize import tiny_checkpoint as tiny

STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
EMPTY = b"\x80\x02}."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, kind: str, length: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(length) + b"tQ"


def tensor(store: bytes, offset: int, shape: Iterable[int], strides: Iterable[int]) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = store + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def strides_of(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def table(entries: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def write_archive(path: Path, pickle: bytes, storages: Mapping[str, bytes], root: str = "archive") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"{root}/data/{key}", data)


def write_torch(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> None:
    entries, storages = {}, {}
    for key, (name, values) in enumerate(tensors.items()):
        entries[name] = tensor(
            storage(str(key), STORAGES[dtype], values.size), 0, values.shape, strides_of(values.shape)
        )
        storages[str(key)] = tiny.stored(values, dtype)
    write_archive(path, table(entries), storages)


def write_shards(folder: Path, tensors: Mapping[str, NDArray[np.float32]], shards: int) -> None:
    weight_map = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        write_torch(folder / shard, {name: tensors[name] for name in tensors if weight_map[name] == shard})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
