"""`general.*` of a Hugging Face folder: what the model is called, how large it is, how its authors sample from it."""

from __future__ import annotations

from typing import Any

from edge_gemma.quantize.checkpoint import CheckpointFolder
from edge_gemma.quantize.metadata import Metadata, f32, i32, string

NAMES = ("name", "version", "organization", "finetune", "basename", "size_label")
SAMPLING = {"top_p": "top_p", "min_p": "min_p", "temperature": "temp", "repetition_penalty": "penalty_repeat"}


def general_metadata(folder: CheckpointFolder, architecture: str, config: dict[str, Any], parameters: int) -> Metadata:
    """Architecture, names as the `gguf` package derives them from the folder's name, `generation_config.json`.

    `parameters`: number of weights, for the size label.
    """
    import gguf

    origin = {key: value for key, value in config.items() if key == "_name_or_path" and isinstance(value, str)}
    guessed = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), None, origin, folder.path, parameters)
    guessed.size_label = guessed.size_label or gguf.size_label(parameters, 0, 0, 0)
    metadata = {"general.architecture": string(architecture), "general.type": string("model")}
    metadata |= _sampling(folder.json("generation_config.json") or {})
    for field in NAMES:
        if value := getattr(guessed, field):
            metadata[f"general.{field}"] = string(str(value))
    return metadata


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
