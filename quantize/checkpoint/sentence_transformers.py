"""What sentence-transformers puts behind a model in its folder: pooling, dense layers. Knows no GGUF.

`modules.json` lists the modules in order, each with the folder of its own config.json and weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder
from .stored_tensor import StoredTensor, no_name

FIRST_DENSE = 2
"""Modules are counted from 0; the model, the pooling, then these: the names that tensors of published models have."""
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class Modules:
    """The dense layers: (inputs, outputs) of each, and their weights by names such as "2_Dense.linear.weight"."""

    shapes: list[tuple[int, int]]
    tensors: dict[str, StoredTensor]
    files: list[Path]


NO_MODULES = Modules([], {}, [])


def read_modules(folder: CheckpointFolder) -> Modules:
    """Those of an encoder's folder; none where there is no modules.json.

    Raises CheckpointError naming the file for what is not computed: other pooling, a bias, an activation.
    """
    dense = []
    for module in _listed(folder.path / "modules.json"):
        kind, path = module["type"].rpartition(".")[2], folder.path / module["path"]
        if kind == "Pooling":
            _check_pooling(path / "config.json")
        elif kind == "Dense":
            dense.append(CheckpointFolder(path))
        elif kind not in ("Transformer", "Normalize"):
            raise CheckpointError(f"{folder.path / 'modules.json'}: a module {kind} is not computed")
    found = Modules([], {}, [])
    for number, layer in enumerate(dense, FIRST_DENSE):
        found.shapes.append(_shape(layer))
        weights = layer.tensors(no_name, no_name)
        if [*weights] != ["linear.weight"]:
            raise CheckpointError(f"{layer.path}: holds {', '.join(weights) or 'nothing'}, not linear.weight alone")
        found.tensors[f"{number}_Dense.linear.weight"] = weights["linear.weight"]
        found.files.extend(entry for entry in layer.path.iterdir() if entry.is_file())
    return found


def _listed(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        modules: Any = json.loads(path.read_bytes())
        sound = isinstance(modules, list)
        sound = sound and all(isinstance(module[key], str) for module in modules for key in ("type", "path"))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: is not a list of modules with type and path: {error!r}") from error
    if not sound or any(".." in Path(module["path"]).parts or Path(module["path"]).is_absolute() for module in modules):
        raise CheckpointError(f"{path}: is not a list of modules with type and path inside the folder")
    return list(modules)


def _config(path: Path) -> dict[str, Any]:
    config = CheckpointFolder(path.parent).json(path.name)
    if config is None:
        raise CheckpointError(f"{path} is missing, though modules.json lists it; download the folder again")
    return config


def _check_pooling(path: Path) -> None:
    config = _config(path)
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode", "mean" if modes == ["pooling_mode_mean_tokens"] else modes)
    if mode != "mean":
        raise CheckpointError(f"{path}: pooling is {mode}; the mean of all tokens is supported")


def _shape(layer: CheckpointFolder) -> tuple[int, int]:
    path = layer.path / "config.json"
    config = _config(path)
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if type(inputs) is not int or type(outputs) is not int or min(inputs, outputs) < 1:
        raise CheckpointError(f"{path}: in_features and out_features are {inputs!r} and {outputs!r}, no sizes")
    if config.get("bias") or config.get("activation_function", IDENTITY) != IDENTITY:
        raise CheckpointError(f"{path}: a bias or an activation behind the pooling is not supported")
    return inputs, outputs
