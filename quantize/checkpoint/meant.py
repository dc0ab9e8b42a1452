"""What somebody meant by a source that is none: the words of an error that say what to give instead. Opens no model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from edge_gemma.errors import CheckpointError

from .stand_ins import BEGIN, stand_in

ADAPTER_CONFIG = "adapter_config.json"
SHOWN = 3  # names of files
MAX_ADAPTER_CONFIG = 1 << 20  # bytes of it that are read for the name of its model
IN_FOLDER = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".model", ".h5", ".msgpack", ".jinja")
"""Kinds of files of which a checkpoint consists."""
HUB_NAME = re.compile(r"(?:https?://)?(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+?)(?:/tree/\w+)?/?")
ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"Rar!": "a rar archive",
}
TAR_AT = 257  # where a tar archive says that it is one


def user_path(path: str | os.PathLike[str]) -> Path:
    """`path` with a `~` at its beginning replaced, as a shell does unless it is quoted."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of a user who is not known
        return Path(path)


def no_such_source(source: Path, given: str) -> FileNotFoundError:
    """The error for a source, which the user spelled `given`, that does not exist."""
    match = HUB_NAME.fullmatch(given)
    if match is None or given.startswith((".", "/")) or given.lower().endswith(".gguf"):
        return FileNotFoundError(f"{source} does not exist")
    text = "if a model on Hugging Face is meant: nothing is downloaded here; download its files and give their folder"
    name = match[1]
    command = f"`hf download {name} --local-dir {name.rpartition('/')[2]}`"
    return FileNotFoundError(f"{given} does not exist; {text} ({command})")


def check_file(source: Path) -> None:
    """Raise CheckpointError if the file `source` is of a kind that is no model by itself, OSError if unreadable."""
    if source.suffix.lower() in IN_FOLDER:
        raise CheckpointError(
            f"{source}: name the folder of the checkpoint, {source.absolute().parent}, not a file in it"
        )
    if not source.is_file():
        return  # the reader of GGUF files says what it is instead
    with source.open("rb") as file:
        begin = file.read(max(BEGIN, TAR_AT + 5))
    kind = next((kind for magic, kind in ARCHIVES.items() if begin.startswith(magic)), None)
    if begin[TAR_AT : TAR_AT + 5] == b"ustar":
        kind = "a tar archive"
    if kind is not None:
        raise CheckpointError(f"{source}: {kind}; unpack it, and give the folder or the GGUF file that was in it")
    if (reason := stand_in(begin)) is not None:
        raise CheckpointError(f"{source}: {reason}")


def no_checkpoint(folder: Path) -> CheckpointError:
    """The error for a folder without config.json."""
    if (folder / ADAPTER_CONFIG).is_file():
        base = _base_model(folder / ADAPTER_CONFIG)
        text = f"the adapter of a model, not a model; give the folder of {base} as the source, and this one with --lora"
        return CheckpointError(f"{folder}: {text}")
    if places := _checkpoints_below(folder):
        return CheckpointError(f"{folder}: no config.json here; give a folder below it: {_listed(places)}")
    if files := sorted(str(path) for path in folder.glob("*.gguf") if not path.name.startswith(".")):
        return CheckpointError(f"{folder}: no config.json, but GGUF files; give one of them: {_listed(files)}")
    text = "no config.json; a folder as transformers saves it is needed: config.json, the weights and the tokenizer"
    return CheckpointError(f"{folder}: {text}")


def _base_model(path: Path) -> str:
    """The model that an adapter says it was made for."""
    if path.stat().st_size > MAX_ADAPTER_CONFIG:
        return "its base model"
    try:
        base = json.loads(path.read_bytes())["base_model_name_or_path"]
    except (ValueError, RecursionError, KeyError, TypeError):  # what is wrong with it is told where it is merged
        return "its base model"
    return f"its base model, {base!r}," if isinstance(base, str) and base else "its base model"


def _checkpoints_below(folder: Path) -> list[str]:
    """Folders with a config.json one below, or in the snapshots of a Hugging Face cache."""
    patterns = ("*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json")
    found = {str(path.parent) for pattern in patterns for path in folder.glob(pattern)}
    return sorted(place for place in found if not Path(place).name.startswith("."))


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
