"""What a path names if it is no GGUF file, and what to do then, in the user's terms. Knows no GGUF and reads no model.

Looks at first bytes, at names and at the list of files in a folder. Nothing here is followed or fetched.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from pathlib import Path

LFS_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
POINTER = "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file"
QUANTIZE_FOLDER = "quantize the checkpoint it belongs to: edge-gemma quantize FOLDER OUT.gguf"

_KINDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (LFS_POINTERS, POINTER),
    ((b"/annex/objects/", b"../.git/annex/", b".git/annex/"), "a git-annex pointer, not the file; run `git annex get`"),
    ((b"<!doctype html", b"<html"), "a web page, not a model: the download led to a page; download the file again"),
    ((b"lmgg", b"tjgg", b"fmgg"), "a GGML file of before GGUF, which is not supported; get the model as GGUF"),
    ((b"PK\x03\x04",), f"a zip archive or a PyTorch file; if it is weights, {QUANTIZE_FOLDER}"),
    ((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"), "a compressed file; unpack it first"),
    ((b"\0" * 16,), "it begins with zeros: a download that did not finish; download it again"),
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".bin")
_CHECKPOINT = ("config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
NAMES_SHOWN = 3


def not_gguf(first: bytes) -> str:
    """What a file is that begins with `first` (up to 64 bytes) instead of b"GGUF", and what to do about it."""
    lowered = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, kind in _KINDS:
        if first.startswith(beginnings) or (beginnings[0].startswith(b"<") and lowered.startswith(beginnings)):
            return kind
    if _is_safetensors(first):
        return f"a safetensors file, not GGUF; {QUANTIZE_FOLDER}"
    return f"{first[:4]!r} where a GGUF file has b'GGUF'; it is no model file, or a damaged one"


def is_lfs_pointer(first: bytes) -> bool:
    """Whether a file that begins with `first` is what Git leaves in the place of a large file."""
    return first.startswith(LFS_POINTERS)


def folder_message(path: Path) -> str:
    """What to do about a folder where a model file was wanted."""
    names = _names(path)
    models = sorted(name for name in names if name.lower().endswith(".gguf"))
    if models:
        more = f" and {len(models) - NAMES_SHOWN} more" if len(models) > NAMES_SHOWN else ""
        return f"a folder; name a file in it: {', '.join(models[:NAMES_SHOWN])}{more}"
    if "adapter_config.json" in names and "config.json" not in names:
        adapter = f"edge-gemma quantize BASE {_quoted(path.name or 'model')}.gguf --lora {_quoted(path)}"
        return f"the folder of an adapter; merge it into its base model first: {adapter}"
    if any(name in _CHECKPOINT or name.endswith((".safetensors", ".bin")) for name in names):
        command = f"edge-gemma quantize {_quoted(path)} {_quoted((path.resolve().name or 'model') + '.gguf')}"
        return f"a folder with a checkpoint, not a GGUF file; quantize it first: {command}"
    return "a folder without a model file; name a GGUF file, or quantize a checkpoint's folder first"


def missing_message(name: str) -> str:
    """What to do about `name`, which is no file: a name of a hub, an address, a mistyped name."""
    if not name:
        return "the name is empty; a GGUF file is wanted"
    if re.match(r"(?i)(https?|hf|s3|gs|ollama)://|(hf\.co|huggingface\.co)/", name):
        return "No such file; nothing is downloaded here: download the model, and name the file"
    if similar := _similar(Path(name)):
        return f"No such file; did you mean {similar}?"
    if any(c in name for c in "*?["):
        return "No such file; a pattern, which the shell has left as it is: name one file"
    if _HUB_NAME.fullmatch(name) and not name.lower().endswith(_MODEL_SUFFIXES):
        return (
            "No such file; if it is a model's name on a hub: nothing is downloaded here. Download it, then name the "
            "GGUF file, or quantize the folder first: edge-gemma quantize FOLDER OUT.gguf"
        )
    folder = expanded(name).parent
    return "No such file" if folder.is_dir() else f"No such file; there is no folder {folder}"


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path`, with a "~" in front as the home folder, unless there is a file of just that name."""
    given = Path(path)
    if not str(given).startswith("~") or given.exists():
        return given
    try:
        return given.expanduser()
    except RuntimeError:  # there is no such user
        return given


def _is_safetensors(first: bytes) -> bool:
    """It begins with the length of a JSON object, in 8 bytes, and that object."""
    return (
        len(first) > 9 and first[8:10] in (b'{"', b"{ ", b"{}", b"{\n") and int.from_bytes(first[:8], "little") < 2**32
    )


def _similar(path: Path) -> str | None:
    """A model file in the same folder whose name is nearly that of `path`."""
    names = [name for name in _names(path.parent) if name.lower().endswith(".gguf")]
    wanted = path.name if path.name.lower().endswith(".gguf") else f"{path.name}.gguf"
    found = difflib.get_close_matches(wanted, names, 1, 0.8)
    return str(path.parent / found[0]) if found else None


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:  # not there, not ours, not a folder: then there is nothing to tell of it
        return []


def _quoted(path: str | Path) -> str:
    """As one types it in a shell."""
    return f'"{path}"' if os.name == "nt" else shlex.quote(str(path))
