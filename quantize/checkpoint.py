"""The files of a Hugging Face folder: which exist, which are refused, which tensors they hold. Knows no GGUF.

Only regular files inside the folder are read, or links into the `blobs` of a Hugging Face cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize.safetensors import read_safetensors
from edge_gemma.quantize.stored_tensor import StoredTensor
from edge_gemma.quantize.strict_json import read_object
from edge_gemma.quantize.torch_file import read_torch


@dataclass(frozen=True)
class Container:
    """A kind of file that holds tensors, and the names transformers gives to one file and to the list of several."""

    single: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], dict[str, StoredTensor]]

    @property
    def index(self) -> str:
        """Name of the file that says which tensor is in which file."""
        return f"{self.single}.index.json"


SAFETENSORS = Container("model.safetensors", (".safetensors",), read_safetensors)
TORCH = Container("pytorch_model.bin", (".bin", ".pt", ".pth"), read_torch)
REFUSED = (".ckpt", ".pkl", ".npy", ".npz", ".msgpack", ".h5")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
"""What trainers leave beside the weights, in PyTorch's format."""


class CheckpointFolder:
    """A folder with config.json, tokenizer files and safetensors or PyTorch files."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if not self.path.is_dir():
            raise CheckpointError(f"{path}: not a folder")

    def file(self, name: str) -> Path | None:
        """Path of the file `name`, None if there is none. Raises CheckpointError for a link that leads elsewhere."""
        path = self.path / name
        if not path.is_file():
            return None
        target = path.resolve()
        cache = self.path.parent.parent / "blobs"  # models--x/snapshots/<revision>/file -> models--x/blobs/<hash>
        if target.parent not in (self.path, cache):
            raise CheckpointError(f"{path}: a link to {target}, outside the checkpoint, is not followed")
        return path

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name`, None if there is no such file."""
        path = self.file(name)
        return None if path is None else read_object(path)

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of the checkpoint by its name; of PyTorch's files only where there are no safetensors.

        Raises CheckpointError naming file and tensor.
        """
        for container in (SAFETENSORS, TORCH):
            index = self.json(container.index)
            if index is not None:
                return self._sharded(container, index)
            if names := self._candidates(container):
                return container.read(self._shard(self._only(container, names)))
        raise CheckpointError(self._no_weights())

    def _candidates(self, container: Container) -> list[str]:
        names = (path.name for path in self.path.iterdir() if path.suffix in container.suffixes)
        return sorted(name for name in names if not name.startswith(NO_WEIGHTS))

    def _only(self, container: Container, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        kinds = "/".join(container.suffixes)
        raise CheckpointError(
            f"{self.path}: {len(names)} files of {kinds} need {container.index} to say which belong to the model"
        )

    def _no_weights(self) -> str:
        refused = sorted(path.name for path in self.path.iterdir() if path.suffix in REFUSED)
        if refused:
            return f"{self.path / refused[0]}: files of this kind are not read; save the weights as safetensors"
        return f"{self.path}: no weights: neither {SAFETENSORS.single} nor {SAFETENSORS.index} nor {TORCH.single}"

    def _shard(self, name: str) -> Path:
        path = self.file(name)
        if path is None:
            raise CheckpointError(f"{self.path / name}: missing; the checkpoint is incomplete")
        return path

    def _sharded(self, container: Container, index: dict[str, Any]) -> dict[str, StoredTensor]:
        expected: dict[str, set[str]] = defaultdict(set)
        for tensor, shard in self._weight_map(container, index).items():
            expected[shard].add(tensor)
        single = container.single
        if single not in expected and self.file(single) is not None:
            text = f"both {single} and {container.index} are there; remove the one that is not meant"
            raise CheckpointError(f"{self.path}: {text}")
        shards = {name: container.read(self._shard(name)) for name in sorted(expected)}
        tensors: dict[str, StoredTensor] = {}
        for name, found in shards.items():
            self._check_shard(container, name, expected[name], set(found))
            tensors.update(found)
        return tensors

    def _weight_map(self, container: Container, index: dict[str, Any]) -> dict[str, str]:
        where, weight_map = self.path / container.index, index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{where}: weight_map is missing or empty")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(container.suffixes) or set(shard) & set("/\\:\0"):
                raise CheckpointError(f"{where}: weight_map[{tensor!r}] is {shard!r}, not a file name")
        return weight_map

    def _check_shard(self, container: Container, name: str, expected: set[str], found: set[str]) -> None:
        where, index = self.path / name, container.index
        if missing := sorted(expected - found):
            raise CheckpointError(f"{where}: tensor {missing[0]!r} is missing, though {index} lists it here")
        if extra := sorted(found - expected):
            text = f"tensor {extra[0]!r} is extra or a duplicate: {index} lists it elsewhere or not at all"
            raise CheckpointError(f"{where}: {text}")
