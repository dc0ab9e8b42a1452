"""The files of a Hugging Face folder: which exist, which are refused, which tensors they hold. Knows no GGUF.

Only regular files inside the folder are read, or links into the `blobs` of a Hugging Face cache.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize.safetensors import StoredTensor, read_safetensors
from edge_gemma.quantize.strict_json import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".npz")


class CheckpointFolder:
    """A folder with config.json, tokenizer files and safetensors."""

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
        """Every tensor of the checkpoint by its name. Raises CheckpointError naming file and tensor."""
        index = self.json(INDEX)
        if index is not None:
            return self._sharded(index)
        names = sorted(p.name for p in self.path.glob("*.safetensors"))
        if not names:
            raise CheckpointError(self._no_weights())
        if len(names) > 1:
            raise CheckpointError(f"{self.path}: {len(names)} safetensors files need {INDEX} to say which belong")
        return read_safetensors(self._shard(names[0]))

    def _no_weights(self) -> str:
        pickles = sorted(p.name for p in self.path.iterdir() if p.suffix in PICKLES)
        if pickles:
            return f"{self.path / pickles[0]}: pickled weights can run code and are not read; save them as safetensors"
        return f"{self.path}: no {SINGLE} and no {INDEX}"

    def _shard(self, name: str) -> Path:
        path = self.file(name)
        if path is None:
            raise CheckpointError(f"{self.path / name}: missing; the checkpoint is incomplete")
        return path

    def _sharded(self, index: dict[str, Any]) -> dict[str, StoredTensor]:
        expected: dict[str, set[str]] = defaultdict(set)
        for tensor, shard in self._weight_map(index).items():
            expected[shard].add(tensor)
        if SINGLE not in expected and self.file(SINGLE) is not None:
            raise CheckpointError(f"{self.path}: both {SINGLE} and {INDEX} are there; remove the one that is not meant")
        shards = {name: read_safetensors(self._shard(name)) for name in sorted(expected)}
        tensors: dict[str, StoredTensor] = {}
        for name, found in shards.items():
            self._check_shard(name, expected[name], set(found))
            tensors.update(found)
        return tensors

    def _weight_map(self, index: dict[str, Any]) -> dict[str, str]:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{self.path / INDEX}: weight_map is missing or empty")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\:\0"):
                raise CheckpointError(f"{self.path / INDEX}: weight_map[{tensor!r}] is {shard!r}, not a file name")
        return weight_map

    def _check_shard(self, name: str, expected: set[str], found: set[str]) -> None:
        if missing := sorted(expected - found):
            raise CheckpointError(f"{self.path / name}: tensor {missing[0]!r} is missing, though {INDEX} lists it here")
        if extra := sorted(found - expected):
            text = f"tensor {extra[0]!r} is extra or a duplicate: {INDEX} lists it elsewhere or not at all"
            raise CheckpointError(f"{self.path / name}: {text}")
