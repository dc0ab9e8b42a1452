"""A GGUF file as a source, for making a smaller one of it. Metadata and names are carried over as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.gguf.values import Metadata, Value
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.text.vocabulary import read_vocabulary

from .source import Source, SourceTensor

DROPPED = ("general.alignment", "split.", "quantize.", "edge_gemma.")
"""Keys, or beginnings of keys, that tell of the old file's layout and making."""


def open_gguf(path: Path) -> Source:
    """The model in the GGUF file `path`, which may be quantized already.

    Raises ModelFormatError naming field and offset for a file this package would not run, OSError if unreadable.
    """
    file = GgufFile.open(path)
    config = read_config(file)
    bound = {tensor.name for tensor in Weights.bind(file, config).tensors()}
    text = [tensor for tensor in file.tensors.values() if tensor.name in bound]
    tensors = [_tensor(file, tensor) for tensor in text]
    notices = _notices(tensors)
    unused = sum(spec.name in file.tensors for spec in config.unused_tensors())
    if unused:
        notices.append(f"keys and values of layers that use those of others left out: {unused} tensors")
    if others := len(file.tensors) - len(text) - unused:
        notices.append(f"left out, as the text model does not use them (a vision tower): {others} tensors")
    return Source(config, _carried_over(file) | _explicit(config), tensors, [path], notices)


def _tensor(file: GgufFile, tensor: Tensor) -> SourceTensor:
    data = file.data(tensor)
    origin = f"{file.path.name}: {tensor.name}"

    def raw(start: int, stop: int) -> NDArray[np.uint8]:
        file.check_unchanged()  # reading what was cut off would end the process
        return data[start:stop]

    return SourceTensor(tensor.name, origin, tensor.shape, tensor.format, raw)


def _carried_over(file: GgufFile) -> Metadata:
    """The file's keys. Raises ModelFormatError for a vocabulary that would not run."""
    read_vocabulary(file)
    keys = file.metadata
    return {key: Value(keys.kind(key), value) for key, value in keys.items() if not key.startswith(DROPPED)}


def _explicit(config: Config) -> Metadata:
    """What is said anew; of the window that it is no longer than the context, as in files of checkpoints."""
    window = f"{config.architecture}.attention.sliding_window"
    keys = config.model.metadata(config)
    return {key: value for key, value in keys.items() if key.startswith("edge_gemma.") or key == window}


def _notices(tensors: list[SourceTensor]) -> list[str]:
    lossy = {tensor.format.name: None for tensor in tensors if not tensor.format.is_float}
    if not lossy:
        return []
    return [f"the source is quantized already ({', '.join(lossy)}): its errors are kept and new ones added"]
