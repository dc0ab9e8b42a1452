"""A digest that tells models apart without reading them whole. Knows no model.

It is of what the metadata says of the model, the table of tensors, and some bytes of each tensor, 5 MB in all of a
model of any size. Metadata that changes no number of the model has no part in it: texts about it, its vocabulary and
template, and where in the file the tensors lie because of these.

Two quantizations differ in their formats, two finetunes in nearly all blocks of their tensors, scales at least. Where
only a few rows of an embedding differ, the samples may be the same; files of our quantizer have the SHA-256 of each
tensor in their metadata, and differ all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import GgufFile
from edge_gemma.gguf.metadata import StringArray

SAMPLE = 4096
"""Bytes of a sample: a page of the mapping."""
SAMPLES = 4
"""Of a tensor, evenly spread, the first and the last bytes among them."""


def model_digest(file: GgufFile) -> str:
    """64 hexadecimal digits; 10 ms, or where the file is not in memory yet, what 800 reads take.

    Raises ModelChangedError where the file was changed since it was opened.
    """
    file.check_unchanged()
    digest = hashlib.blake2b(digest_size=32)
    for key in sorted(filter(_is_of_the_model, file.metadata)):
        content = _encoded(file.metadata[key])
        digest.update(f"{key} {file.metadata.kind(key)} {len(content)}\n".encode() + content)
    for tensor in file.tensors.values():
        digest.update(f"{tensor.name} {tensor.format.name} {tensor.shape}\n".encode())
        for sample in _samples(file.data(tensor).reshape(-1)):
            digest.update(sample.data)
    return digest.hexdigest()


def _is_of_the_model(key: str) -> bool:
    return key == "general.architecture" or not key.startswith(("general.", "tokenizer."))


def _encoded(value: object) -> bytes:
    if isinstance(value, StringArray):
        return b"".join(len(text).to_bytes(8, "little") + text for text in value)
    if isinstance(value, np.ndarray | memoryview):
        return value.tobytes()
    return repr(value).encode("utf-8", "surrogateescape")


def _samples(data: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """All of a short tensor."""
    if len(data) <= SAMPLE * SAMPLES:
        yield data
        return
    for i in range(SAMPLES):
        start = (len(data) - SAMPLE) * i // (SAMPLES - 1)
        yield data[start : start + SAMPLE]
