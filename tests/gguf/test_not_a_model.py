"""What is no model: other files, folders, names that nothing has. The error says what to do."""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edge_gemma.errors import MemoryBudgetError
from edge_gemma.gguf.file import GgufFile
from tests.gguf.small_files import plain, refused

# What people have under the name of a model, and what they are to do.
OTHER_FILES: list[tuple[bytes, str]] = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 253113024\n", "git lfs pull"),
    (b"/annex/objects/SHA256E-s253113024--a5fd.gguf\n", "git annex get"),
    (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "web page"),
    (b"\n\n<HTML lang=en><head><title>404</title>", "web page"),
    (b"PK\x03\x04\0\0\x08\x08" + bytes(40), "zip archive or a PyTorch file; .*edge-gemma quantize FOLDER"),
    (struct.pack("<Q", 62) + b'{"model.embed_tokens.weight":{"dtype":"BF16"', "safetensors file.*edge-gemma quantize"),
    (b"tjgg\x03\0\0\0" + bytes(40), "GGML file of before GGUF"),
    (b"\x1f\x8b\x08\0" + bytes(40), "compressed"),
    (bytes(64), "did not finish"),
    (b"Once upon a time there was a file", "b'Once' where a GGUF file has b'GGUF'"),
]


@pytest.mark.parametrize(("content", "message"), OTHER_FILES)
def test_what_else_a_file_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    error = refused(path)
    assert (error.field, error.offset) == ("magic", 0)
    assert re.search(message, str(error))


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain(tail=b"PK\3\4 and more"))
    with pytest.warns(UserWarning, match="13 bytes after the last tensor"):
        GgufFile.open(path).close()
    error = refused(path, strict=True)
    assert (error.field, error.offset) == ("end of data", path.stat().st_size - 13)


@pytest.mark.parametrize("load", ["map", "copy"])
def test_not_a_regular_file(tmp_path: Path, load: str) -> None:
    assert "a folder" in str(refused(tmp_path, load=load))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "pipe" in str(refused(tmp_path / "pipe", load=load))
    if Path("/dev/zero").exists():
        assert "a device" in str(refused(Path("/dev/zero"), load=load))


# The files of a folder that somebody named where a model's file is wanted, and what the error says.
FOLDERS: list[tuple[list[str], str]] = [
    ([], "a folder without a model file"),
    (["config.json", "model.safetensors"], "quantize it first: edge-gemma quantize {folder} gemma.gguf"),
    (["pytorch_model.bin"], "quantize it first"),
    (["model-00001-of-00002.safetensors"], "quantize it first"),
    (["adapter_config.json", "adapter_model.safetensors"], "quantize BASE gemma.gguf --lora {folder}"),
    (["b.gguf", "a.GGUF", "config.json"], "name a file in it: a.GGUF, b.gguf"),
    (["a.gguf", "b.gguf", "c.gguf", "d.gguf"], "a.gguf, b.gguf, c.gguf and 1 more"),
]


@pytest.mark.parametrize(("names", "message"), FOLDERS)
def test_a_folder_in_place_of_a_file(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "gemma"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    assert message.format(folder=folder) in str(refused(folder))


# What somebody typed that is no file, and what the error says.
MISSING: list[tuple[str, str]] = [
    ("google/gemma-2-2b", "nothing is downloaded here"),
    ("gemma3:270m", "nothing is downloaded here"),
    ("https://huggingface.co/google/gemma-2-2b/resolve/main/model.gguf", "nothing is downloaded here"),
    ("hf.co/unsloth/gemma-3-270m-it-GGUF:Q4_K_M", "nothing is downloaded here"),
    ("gemma-q4_O.gguf", "did you mean gemma-q4_0.gguf?"),
    ("gemma-q4_0", "did you mean gemma-q4_0.gguf?"),
    ("nowhere/gemma.gguf", "there is no folder nowhere"),
    ("~/gemma-none.gguf", "No such file"),
    ("~nobody-of-this-name/x.gguf", "there is no folder ~nobody-of-this-name"),
    ("*.gguf", "a pattern"),
    ("other.gguf", "No such file"),
    ("", "the name is empty"),
]


@pytest.mark.parametrize(("name", "message"), MISSING)
def test_a_name_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "gemma-q4_0.gguf").touch()
    with pytest.raises(FileNotFoundError) as caught:
        GgufFile.open(name)
    assert message in caught.value.strerror
    assert caught.value.filename == name


def test_a_tilde_is_the_home_folder_unless_a_file_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (here / "~").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (home / "a.gguf").write_bytes(plain())
    with GgufFile.open("~/a.gguf") as file:
        assert file.path == home / "a.gguf"
    (here / "~" / "a.gguf").write_bytes(plain())
    with GgufFile.open(Path("~/a.gguf")) as file:
        assert file.path == Path("~/a.gguf")


@pytest.mark.parametrize("load", ["map", "copy"])
def test_no_room_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Literal["map", "copy"]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plain())

    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory") if load == "map" else MemoryError

    monkeypatch.setattr(*((mmap, "mmap") if load == "map" else (np, "empty")), refuse)
    with pytest.raises(MemoryBudgetError, match=rf"model\.gguf, {path.stat().st_size} bytes; "):
        GgufFile.open(path, load=load)


def test_missing_file_and_symlink_loop_are_os_errors_with_the_path(tmp_path: Path) -> None:
    missing = tmp_path / "absent.gguf"
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
        GgufFile.open(missing)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        GgufFile.open(tmp_path / "loop")
