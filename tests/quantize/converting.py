"""What the tests of conversions share: a small checkpoint converted, and what is in the file."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from tests.quantize import tiny_checkpoint as tiny

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]


def values(file: GgufFile, name: str) -> NDArray[np.float32]:
    tensor = file.tensors[name]
    kind = gguf.GGMLQuantizationType[tensor.format.name]
    raw = file.data(tensor)
    return gguf.quants.dequantize(raw, kind).reshape(tensor.shape)


def metadata(path: Path) -> dict[str, Any]:
    """Plain values; arrays as lists."""
    with GgufFile.open(path) as file:
        keys = file.metadata
        return {key: list(value) if keys.kind(key).startswith("ARRAY") else value for key, value in keys.items()}


def convert(tmp_path: Path, architecture: str = "gemma2", type: str = "F32", **kwargs: Any) -> Path:
    tiny.write_checkpoint(tmp_path / "hf", architecture, **kwargs)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", type)
    return tmp_path / "out.gguf"
