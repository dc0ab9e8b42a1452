"""The files of a Hugging Face folder: which exist, which are refused, which tensors they hold. Knows no GGUF.

Links in the folder are followed, wherever they lead: they are its owner's. No name in a file of it leads out of it.
The files of weights are those that transformers takes: `model.safetensors`, else those of its index, else the same of
`pytorch_model.bin`; and where there are none of these names, the only other file of weights there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError

from .safetensors import read_safetensors
from .stand_ins import refuse_stand_in
from .stored_tensor import NameTest, StoredTensor, no_name
from .strict_json import read_object
from .torch_file import read_torch


@dataclass(frozen=True)
class Container:
    """A kind of file that holds tensors, and the names transformers gives to one file and to the list of several."""

    single: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, NameTest], dict[str, StoredTensor]]

    @property
    def index(self) -> str:
        """Name of the file that says which tensor is in which file."""
        return f"{self.single}.index.json"


SAFETENSORS = Container("model.safetensors", (".safetensors",), read_safetensors)
TORCH = Container("pytorch_model.bin", (".bin", ".pt", ".pth"), read_torch)
REFUSED = (".ckpt", ".pkl", ".npy", ".npz", ".msgpack", ".h5")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""Names that PEFT gives to the weights of an adapter."""
NO_WEIGHTS = (
    *(".", "adapter_model", "value_head", "v_head"),
    *("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"),
)
"""How the names begin of what trainers and macOS leave beside the weights of a model."""


class CheckpointFolder:
    """A folder with config.json, tokenizer files and safetensors or PyTorch files.

    `notices`: what to tell of the files. `left_out`: names of the tensors that `tensors` was told not to read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.notices: list[str] = []
        self.left_out: set[str] = set()
        if not self.path.is_dir():
            raise CheckpointError(f"{path}: not a folder{'' if path.exists() else ': it does not exist'}")

    def file(self, name: str) -> Path | None:
        """Path of the file `name`, None if there is none. Raises CheckpointError for what stands in for a file."""
        path = self.path / name
        if path.is_file():
            refuse_stand_in(path)
            return path
        if path.is_symlink() and not path.exists():
            text = "which is not there; fetch it (git annex get, dvc pull), or download the file again"
            raise CheckpointError(f"{path}: a link to {path.readlink()}, {text}")
        if path.exists():
            raise CheckpointError(f"{path}: {'a folder' if path.is_dir() else 'a pipe or device'}, not a regular file")
        return None

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name`, None if there is no such file."""
        path = self.file(name)
        return None if path is None else read_object(path)

    def tensors(self, unread: NameTest = no_name, spare: NameTest = no_name) -> dict[str, StoredTensor]:
        """Every tensor of the checkpoint by its name; of PyTorch's files only where there are no safetensors.

        Those that are `unread` are left out, wherever they are and of whatever type; `spare` ones may be missing where
        an index lists them, or be where none does. Raises CheckpointError naming file and tensor.
        """

        def passed(name: str) -> bool:
            if unread(name):
                self.left_out.add(name)
            return unread(name)

        for container in (SAFETENSORS, TORCH):
            index = self.json(container.index)
            if (single := self.file(container.single)) is not None and not self._in_parts(container, index):
                self._tell_of_others(container, index)
                return container.read(single, passed)
            if index is not None:
                return self._sharded(container, index, passed, spare)
        for container in (SAFETENSORS, TORCH):
            if names := self._candidates(container):
                return container.read(self._shard(self._only(container, names)), passed)
        raise CheckpointError(self._no_weights())

    def _in_parts(self, container: Container, index: dict[str, Any] | None) -> bool:
        """Whether the index counts the single file among several."""
        shards = set() if index is None else set(self._weight_map(container, index).values())
        return container.single in shards and len(shards) > 1

    def _tell_of_others(self, container: Container, index: dict[str, Any] | None) -> None:
        """Of weights beside the model that its user may think are in it."""
        if index is not None and set(self._weight_map(container, index).values()) != {container.single}:
            self.notices.append(f"{container.single} is taken for the model, not the files in {container.index}")
        if adapters := [name for name in ADAPTERS if (self.path / name).is_file()]:
            self.notices.append(f"{adapters[0]} beside the model is not merged (--lora merges an adapter)")

    def _candidates(self, container: Container) -> list[str]:
        paths = (path for path in self.path.iterdir() if path.suffix in container.suffixes and not path.is_dir())
        return sorted(path.name for path in paths if not path.name.startswith(NO_WEIGHTS))

    def _only(self, container: Container, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        kinds, shown = "/".join(container.suffixes), ", ".join(names[:3])
        raise CheckpointError(
            f"{self.path}: {len(names)} files of {kinds} need {container.index} to say which belong to the model "
            f"({shown}); download it, too, or name the one that is the model {container.single}"
        )

    def _no_weights(self) -> str:
        if any((self.path / name).is_file() for name in ADAPTERS):
            text = "only an adapter, no weights of a model; give the folder of the model it was made for, and this one"
            return f"{self.path}: {text} with --lora"
        names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        if refused := [name for name in names if name.endswith(REFUSED)]:
            return f"{self.path / refused[0]}: files of this kind are not read; save the weights as safetensors"
        text = f"no weights: neither {SAFETENSORS.single} nor {SAFETENSORS.index} nor {TORCH.single}"
        return f"{self.path}: {text}; is the download complete?"

    def _shard(self, name: str) -> Path:
        path = self.file(name)
        if path is None:
            raise CheckpointError(f"{self.path / name}: missing; the checkpoint is incomplete, download this file, too")
        return path

    def _sharded(
        self, container: Container, index: dict[str, Any], unread: NameTest, spare: NameTest
    ) -> dict[str, StoredTensor]:
        weight_map = self._weight_map(container, index)
        needed: dict[str, set[str]] = {shard: set() for shard in sorted(weight_map.values())}
        for tensor, shard in weight_map.items():
            if not unread(tensor) and not spare(tensor):
                needed[shard].add(tensor)
        tensors: dict[str, StoredTensor] = {}
        for shard, wanted in needed.items():
            if wanted or (self.path / shard).is_file():
                found = container.read(self._shard(shard), unread)
                self._check_shard(container, shard, wanted, {name for name in found if not spare(name)})
                self._gather(tensors, shard, found, weight_map)
        return tensors

    def _weight_map(self, container: Container, index: dict[str, Any]) -> dict[str, str]:
        where, weight_map = self.path / container.index, index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{where}: weight_map is missing or empty; download the file again")
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or not shard.endswith(container.suffixes) or set(shard) & set("/\\:\0"):
                raise CheckpointError(f"{where}: weight_map[{tensor!r}] is {shard!r}, not a file name")
        return weight_map

    def _check_shard(self, container: Container, name: str, expected: set[str], found: set[str]) -> None:
        where, index = self.path / name, container.index
        if missing := sorted(expected - found):
            text = f"tensor {missing[0]!r} is missing, though {index} lists it here; download both files again"
            raise CheckpointError(f"{where}: {text}")
        if extra := sorted(found - expected):
            text = f"tensor {extra[0]!r} is extra or a duplicate: {index} lists it elsewhere or not at all"
            raise CheckpointError(f"{where}: {text}; are files of two models in the folder?")

    def _gather(
        self, tensors: dict[str, StoredTensor], shard: str, found: dict[str, StoredTensor], weight_map: dict[str, str]
    ) -> None:
        """Add those of a shard. Of one that several hold, which only a spare one can be, the listed one holds."""
        for name, tensor in found.items():
            listed = weight_map.get(name)
            if name not in tensors or listed == shard:
                tensors[name] = tensor
            elif listed != tensors[name].file.path.name:
                other = tensors[name].file.path.name
                raise CheckpointError(f"{self.path / shard}: tensor {name!r} is in {other}, too: which is meant?")
