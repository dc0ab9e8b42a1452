"""`general.*` of a Hugging Face folder: what the model is called, how large it is, how its authors sample from it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from edge_gemma.gguf.values import Metadata, f32, i32, string

from .folder import CheckpointFolder
from .source import SourceTensor

NAMES = ("name", "version", "organization", "finetune", "basename", "size_label")
HUB_CACHE = re.compile(r"(?:^|/)models--(?P<name>[^/]+)/snapshots/[^/]+/?$")
"""Where huggingface_hub keeps the files of a revision."""
SAMPLING = {"top_p": "top_p", "min_p": "min_p", "temperature": "temp", "repetition_penalty": "penalty_repeat"}


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights: all, those outside of experts, those of one expert; and how many experts there are."""

    total: int
    shared: int
    of_expert: int
    experts: int


def count_parameters(tensors: Sequence[SourceTensor]) -> Parameters:
    """As llama.cpp's converter counts them."""
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    counts = {tensor.name: tensor.shape[0] for tensor in tensors if len(tensor.shape) > 2}
    of_all = sum(sizes[name] for name in counts)
    of_expert = sum(sizes[name] // count for name, count in counts.items())
    total = sum(sizes.values())
    return Parameters(total, total - of_all, of_expert, max(counts.values(), default=0))


def general_metadata(
    folder: CheckpointFolder, architecture: str, config: dict[str, Any], parameters: Parameters
) -> Metadata:
    """Architecture, names as the `gguf` package derives them from the model's name, `generation_config.json`.

    `parameters`: for the size label.
    """
    import gguf

    name = _hub_name(folder.path) or _hub_name(folder.path.resolve())
    given = name or config.get("_name_or_path")
    origin = {"_name_or_path": given} if isinstance(given, str) else {}
    called = Path(name or _folder_name(folder.path))
    guessed = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), None, origin, called, parameters.total)
    guessed.size_label = guessed.size_label or gguf.size_label(*astuple(parameters))
    metadata = {"general.architecture": string(architecture), "general.type": string("model")}
    metadata |= _sampling(folder.json("generation_config.json") or {})
    for field in NAMES:
        if value := getattr(guessed, field):
            metadata[f"general.{field}"] = string(str(value))
    return metadata


def _hub_name(path: Path) -> str | None:
    """The name of the repository, where `path` is one of the snapshots in a Hugging Face cache."""
    match = HUB_CACHE.search(path.as_posix())
    return None if match is None else match["name"].replace("--", "/", 1)


def _folder_name(path: Path) -> str:
    """What the user calls the folder, which may be a link; of `.` and `..` what they are."""
    return path.name if path.name not in ("", ".", "..") else path.resolve().name


def _sampling(config: dict[str, Any]) -> Metadata:
    """llama.cpp takes its defaults from these."""
    keys: Metadata = {}
    top_k = config.get("top_k")
    if type(top_k) is int and 0 <= top_k < 2**31:
        keys["general.sampling.top_k"] = i32(top_k)
    for name, key in SAMPLING.items():
        value = config.get(name)
        if isinstance(value, int | float) and abs(value) < 1e6:
            keys[f"general.sampling.{key}"] = f32(value)
    return keys
