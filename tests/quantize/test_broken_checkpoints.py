"""The command line on broken inputs: exit status 2, one line that names file and tensor, and nothing written."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.commands import quantize as cli
from edge_gemma.errors import CheckpointError, ModelChangedError
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint import strict_json
from edge_gemma.quantize.checkpoint.gguf_source import open_gguf
from edge_gemma.quantize.checkpoint.hf_source import open_folder
from edge_gemma.quantize.checkpoint.stored_tensor import MappedFile
from tests.quantize import tiny_checkpoint as tiny

ROOT = Path(__file__).resolve().parents[2]
UP = "model.layers.1.mlp.up_proj.weight"
Floats = NDArray[np.float32]
Break = Callable[[Path, dict[str, Floats]], None]


def tensors_changed(change: Callable[[dict[str, Floats]], Any]) -> Break:
    def apply(folder: Path, tensors: dict[str, Floats]) -> None:
        change(tensors)
        tiny.write_weights(folder, tensors)

    return apply


def config_changed(**changes: Any) -> Break:
    def apply(folder: Path, tensors: dict[str, Floats]) -> None:
        (folder / "config.json").write_text(json.dumps(tiny.make_config("gemma2", **changes)))

    return apply


def file_removed(name: str) -> Break:
    return lambda folder, tensors: (folder / name).unlink()


def file_written(name: str, content: bytes) -> Break:
    def apply(folder: Path, tensors: dict[str, Floats]) -> None:
        (folder / name).write_bytes(content)

    return apply


def shard_lost(folder: Path, tensors: dict[str, Floats]) -> None:
    (folder / "model.safetensors").unlink()
    tiny.write_weights(folder, tensors, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def in_two_shards(folder: Path, tensors: dict[str, Floats]) -> None:
    (folder / "model.safetensors").unlink()
    tiny.write_weights(folder, tensors, shards=2)
    first = folder / "model-00001-of-00002.safetensors"
    kept = {name: values for i, (name, values) in enumerate(tensors.items()) if i % 2 == 0}
    other = next(name for i, name in enumerate(tensors) if i % 2 == 1)
    tiny.write_safetensors(first, kept | {other: tensors[other]})


def cut_off(folder: Path, tensors: dict[str, Floats]) -> None:
    os.truncate(folder / "model.safetensors", 100_000)


def not_finite(value: float) -> Break:
    return tensors_changed(lambda t: t[UP].__setitem__((37, 5), value))


WHERE = r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight"
BROKEN: dict[str, tuple[Break, str]] = {
    "missing shard": (shard_lost, r"model-00002-of-00003\.safetensors: missing; the checkpoint is incomplete"),
    "tensor in two shards": (in_two_shards, r"model-00001-of-00002\.safetensors: tensor '.*' is extra or a duplicate"),
    "the same tensor twice": (
        tensors_changed(lambda t: t.update({f"language_model.{UP}": t[UP]})),
        r"hf: tensors 'model\.layers\.1.*up_proj\.weight' and 'language_model.*' are the same tensor",
    ),
    "missing tensor": (tensors_changed(lambda t: t.pop(UP)), r"hf: 1 tensors are missing .*layers\.1\.mlp\.up_proj"),
    "extra tensor": (tensors_changed(lambda t: t.update(x=np.ones(3, np.float32))), r"model\.safetensors: x"),
    "wrong shape": (tensors_changed(lambda t: t.update({UP: t[UP].T.copy()})), rf"{WHERE} has shape \(64, 96\); conf"),
    "NaN": (not_finite(np.nan), rf"{WHERE}: row 37: 1 values are NaN or infinite, the first in column 5"),
    "infinity": (not_finite(-np.inf), rf"{WHERE}: row 37: 1 values are NaN or infinite"),
    "too large": (not_finite(1e30), rf"{WHERE}: row 37: 1e\+30 is too large"),
    "cut off": (cut_off, r"model\.safetensors: tensor '.*' ends \d+ bytes beyond the file \(cut off\?\)"),
    "unknown architecture": (config_changed(architectures=["BertForMaskedLM"]), r"config\.json: .*'BertForMaskedLM'"),
    "more layers": (config_changed(num_hidden_layers=4), r"hf: 11 tensors are missing that config\.json asks for"),
    "fewer layers": (config_changed(num_hidden_layers=2), r"11 tensors are extra, config\.json .*layers\.2"),
    "wider": (config_changed(hidden_size=96), r"model\.safetensors: .* has shape .*; config\.json asks for"),
    "no config": (file_removed("config.json"), r"hf: no config\.json"),
    "config is no JSON": (file_written("config.json", b"{"), r"config\.json: not valid JSON"),
    "config with \\xff": (file_written("config.json", b'{"a": "\xff"}'), r"config\.json: not valid JSON"),
    "no weights": (file_removed("model.safetensors"), r"hf: no weights: neither model\.safetensors nor"),
    "no tokenizer": (file_removed("tokenizer.model"), r"hf: neither tokenizer\.model nor tokenizer\.json"),
    "broken tokenizer": (file_written("tokenizer.model", b"\x0a\xff"), r"tokenizer\.model: not a sentencepiece model"),
    "tokenizer too large": (config_changed(vocab_size=300), r"tokenizer\.model: 384 tokens, but config\.json .* 300"),
    "escape codes in a name": (
        tensors_changed(lambda t: t.update({"\x1b[2J\nx": np.ones(3, np.float32)})),
        r"model\.safetensors: \\x1b\[2J\\nx; ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_line_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    damage, message = BROKEN[name]
    damage(tmp_path / "hf", tensors)
    (tmp_path / "out.gguf").write_bytes(b"old")
    assert cli.main([str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--force", "--quiet"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("edge-gemma quantize: error: ") and errors.endswith("\n") and errors.count("\n") == 1
    assert re.search(message, errors.rstrip("\n")), errors
    assert (tmp_path / "out.gguf").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf", "out.gguf"]


def test_a_source_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the source fails in the middle of the weights."""
    tiny.write_checkpoint(tmp_path / "hf")
    views = MappedFile.view
    count = 0

    def failing(file: MappedFile, start: int, stop: int) -> NDArray[np.uint8]:
        nonlocal count
        count += 1
        if count > 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file.path))
        return views(file, start, stop)

    monkeypatch.setattr(MappedFile, "view", failing)
    assert cli.main([str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--quiet"]) == 2
    assert "Input/output error" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_source_cut_off_while_it_is_open(tmp_path: Path, kind: str) -> None:
    """It is looked at before each slab: reading a mapping past the end of its file would end the process."""
    tiny.write_checkpoint(tmp_path / "hf")
    weights, source = tmp_path / "hf/model.safetensors", open_folder(tmp_path / "hf")
    if kind == "gguf":
        weights = tmp_path / "source.gguf"
        quantize(tmp_path / "hf", weights, "F32")
        source = open_gguf(weights)
    last = source.tensors[-1]
    assert last.raw(0, 1).size == last.row_bytes
    os.truncate(weights, 20_000)
    with pytest.raises((CheckpointError, ModelChangedError), match=r"was cut off|was modified"):
        last.raw(0, 1)


def test_json_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    monkeypatch.setattr(strict_json, "MAX_BYTES", 100)
    assert cli.main([str(tmp_path / "hf"), str(tmp_path / "out.gguf")]) == 2
    assert "bytes of JSON; at most 100 are read" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_devices(tmp_path: Path) -> None:
    """Not written to as OUT; and a full standard output does not undo what was written."""
    tiny.write_checkpoint(tmp_path / "hf")
    command = [sys.executable, "-m", "edge_gemma", "quantize", str(tmp_path / "hf")]
    done = subprocess.run([*command, "/dev/full", "-f"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "/dev/full exists and is not a regular file" in done.stderr
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, str(tmp_path / "out.gguf")],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0 and "No space left" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"
