"""Sources that are none: what somebody meant is said, and what to give instead; and what a model is called."""

import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.commands import cli
from edge_gemma.errors import CheckpointError, EdgeGemmaError, ModelFormatError
from edge_gemma.quantize import imatrix, quantize
from edge_gemma.quantize.convert import open_source, plan
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build
from tests.quantize.converting import convert, metadata
from tests.quantize.test_lora import adapter_tensors, write_adapter

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 134\n" % (b"0" * 64)


def told(source: str | Path) -> str:
    """The error of a source, which the command line prints on one line, with status 2."""
    with pytest.raises((EdgeGemmaError, OSError)) as caught:
        quantize(source, "out.gguf")
    assert cli.main(["quantize", str(source), "out.gguf"]) == 2
    assert not Path("out.gguf").exists()
    return str(caught.value)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- what stands in for a file -----------------------------------------------------------------------------------

STAND_INS = {
    "Git LFS": (LFS, "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"),
    "Git LFS with Windows' line ends": (LFS.replace(b"\n", b"\r\n"), "a Git LFS pointer"),
    "git-annex": (b"/annex/objects/SHA256E-s134--00.bin\n", "a git-annex pointer, .* run `git annex get`"),
    "a page": (b"\n<!DOCTYPE html><html>", "a web page or its refusal"),
    "gated": (b"Access to model google/gemma-2-2b is restricted.", "a web page or its refusal, .* logged in"),
    "nothing": (b"", "the file is empty .* download it again"),
}
FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.model",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
]


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("name", FILES)
def test_files_that_were_not_downloaded(tmp_path: Path, name: str, kind: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / name).write_bytes(STAND_INS[kind][0])
    with pytest.raises(CheckpointError, match=rf"hf/{name}: {STAND_INS[kind][1]}"):
        quantize("hf", "out.gguf")


def test_other_forms_of_a_checkpoint(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "json", tokenizer="json")
    (tmp_path / "json/tokenizer.json").write_bytes(LFS)
    tiny.write_checkpoint(tmp_path / "shards", shards=2)
    (tmp_path / "shards/model-00002-of-00002.safetensors").write_bytes(LFS)
    tiny.write_checkpoint(tmp_path / "index", shards=2)
    (tmp_path / "index/model.safetensors.index.json").write_bytes(LFS)
    tensors = tiny.write_checkpoint(tmp_path / "torch")
    (tmp_path / "torch/model.safetensors").unlink()
    (tmp_path / "torch/pytorch_model.bin").write_bytes(LFS)
    for name in ("json", "shards", "index", "torch"):
        assert "a Git LFS pointer" in told(name)
    build.write_torch(tmp_path / "torch/pytorch_model.bin", tensors)
    quantize("torch", "out.gguf")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_was_not_downloaded(tmp_path: Path, name: str) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    (tmp_path / "lora" / name).write_bytes(LFS)
    with pytest.raises(CheckpointError, match=rf"lora/{name}: a Git LFS pointer"):
        quantize("hf", "out.gguf", lora=[("lora", 1.0)])


def test_a_gguf_file_and_an_importance_matrix_that_were_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(LFS)
    assert "x.gguf: a Git LFS pointer" in told("x.gguf")
    with pytest.raises(ModelFormatError, match=r"x\.gguf: beginning: a Git LFS pointer"):
        imatrix.load("x.gguf")


def test_files_that_nobody_reads_may_be_anything(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    for name in ("README.md", "tokenizer.json", "flax_model.msgpack", "pytorch_model.bin", "preprocessor_config.json"):
        (tmp_path / "hf" / name).write_bytes(LFS)
    quantize("hf", "out.gguf")


# ---- what was meant ----------------------------------------------------------------------------------------------


def test_an_adapter_as_the_source(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    text = told("lora")
    assert "the adapter of a model, not a model; give the folder of its base model, 'some/base', as the source" in text
    assert "this one with --lora" in text
    (tmp_path / "lora/adapter_config.json").write_text("[]")
    assert "the folder of its base model as" in told("lora")
    (tmp_path / "lora/config.json").write_bytes((tmp_path / "hf/config.json").read_bytes())
    assert "only an adapter, no weights of a model" in told("lora")


def test_a_model_as_the_adapter(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_safetensors(tmp_path / "adapter_model.safetensors", {})
    wrong = {
        "hf": "no adapter_config.json; this is a model; give it as the source",
        "someone/adapter": r"someone/adapter does not exist; .* nothing is downloaded here",
        "adapter_model.safetensors": rf"name the folder of the adapter, {tmp_path}$",
    }
    for path, message in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            quantize("hf", "out.gguf", lora=[(path, 1.0)])


HUB = ["google/gemma-2-2b", "https://huggingface.co/google/gemma-2-2b", "huggingface.co/google/gemma-2-2b/"]
HUB += ["hf.co/google/gemma-2-2b", "https://huggingface.co/google/gemma-2-2b/tree/main"]


@pytest.mark.parametrize("name", HUB)
def test_a_name_on_hugging_face(name: str) -> None:
    text = told(name)
    assert text.startswith(f"{name} does not exist") and "nothing is downloaded here" in text
    assert "`hf download google/gemma-2-2b --local-dir gemma-2-2b`" in text


@pytest.mark.parametrize("name", ["models/gemma.gguf", "./google/gemma", "/nowhere/gemma", "a/b/c"])
def test_a_path_that_does_not_exist(name: str) -> None:
    text = told(name)
    assert text.endswith("does not exist") and "hf download" not in text


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    assert cli.main(["quantize", "~/hf", "~/a.gguf", "--quiet", "--lora", "~/lora:0.5", "--type", "F32"]) == 0
    quantize("~/a.gguf", "~/b.gguf", lora=[("~/lora", 1.0)])
    assert plan("~/hf").infos and open_source("~/b.gguf").tensors
    assert cli.main(["verify", str(tmp_path / "a.gguf"), "--against", "~/hf", "--lora", "~/lora:0.5"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "hf", "lora"]
    assert "~nobody-of-this-name/x does not exist" in told("~nobody-of-this-name/x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "pytorch_model.bin"])
def test_a_file_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/pytorch_model.bin").touch()
    assert f"name the folder of the checkpoint, {tmp_path / 'hf'}, not a file in it" in told(f"hf/{name}")


def test_folders_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no config.json; a folder as transformers saves it is needed" in told("empty")
    convert(tmp_path).rename(tmp_path / "empty/b.gguf")
    (tmp_path / "empty/._b.gguf").touch()
    assert told("empty").endswith(f"but GGUF files; give one of them: {tmp_path / 'empty/b.gguf'}")
    for name in "acde":
        (tmp_path / f"empty/{name}.gguf").touch()
    assert "c.gguf and 2 more" in told("empty")
    assert told(".").endswith(f"no config.json here; give a folder below it: {tmp_path / 'hf'}")


def test_the_root_of_a_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--google--gemma-2-2b/snapshots/0123"
    tiny.write_checkpoint(snapshot)
    for place in ("hub", "hub/models--google--gemma-2-2b", "hub/models--google--gemma-2-2b/snapshots"):
        assert told(place).endswith(f"give a folder below it: {snapshot}")
    quantize(snapshot, "out.gguf")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/config.json", "{}")


def _tar(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, mode) as archive:
            archive.add(path.parent / "hf", "hf")

    return write


ARCHIVES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "x.zip": (_zip, "a zip archive"),
    "y.gguf": (_zip, "a zip archive"),
    "x.tar": (_tar("w"), "a tar archive"),
    "x.tar.gz": (_tar("w:gz"), "a gzip archive"),
    "x.tar.xz": (_tar("w:xz"), "an xz archive"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path: Path, name: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    write, kind = ARCHIVES[name]
    write(tmp_path / name)
    assert f"{name}: {kind}; unpack it" in told(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in told("pipe")


def test_a_folder_as_the_output(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    with pytest.raises(FileExistsError, match="is a folder, not a regular file; name a file in it"):
        quantize("hf", tmp_path, force=True)


# ---- names -------------------------------------------------------------------------------------------------------

SNAPSHOT = "hub/models--google--gemma-3-270m/snapshots/9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1"


def general(source: Path | str) -> dict[str, str]:
    quantize(source, "out.gguf", "F32", force=True)
    return {key: value for key, value in metadata(Path("out.gguf")).items() if key.startswith("general.")}


def test_a_snapshot_has_its_repository_s_name(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / SNAPSHOT, "gemma3")
    tiny.write_checkpoint(tmp_path / "gemma-3-270m", "gemma3")
    named = general("gemma-3-270m")
    assert named["general.name"] == "Gemma 3 270m"
    assert general(SNAPSHOT) == named | {"general.organization": "Google"}
    (tmp_path / "link").symlink_to(SNAPSHOT)
    assert general("link") == general(SNAPSHOT)


def test_a_snapshot_without_an_owner_and_another_revision(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "models--tuned/snapshots/main", _name_or_path="google/gemma-2-2b")
    assert general("models--tuned/snapshots/main")["general.name"] == "Tuned"


def test_a_link_to_a_store_has_the_name_of_the_link(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "store/5f3c09")
    (tmp_path / "gemma-mine").symlink_to("store/5f3c09")
    assert general("gemma-mine")["general.name"] == "Gemma Mine"


@pytest.mark.parametrize("spelled", [".", "../my-gemma", "sub/..", "./"])
def test_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    tiny.write_checkpoint(tmp_path / "my-gemma")
    (tmp_path / "my-gemma/sub").mkdir()
    monkeypatch.chdir(tmp_path / "my-gemma")
    quantize(spelled, tmp_path / "out.gguf", "F32")
    assert metadata(tmp_path / "out.gguf")["general.name"] == "My Gemma"


def test_an_adapter_config_of_any_form(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    for text in ("{", json.dumps({"base_model_name_or_path": 7}), "[" * 100_000, "\xff", ""):
        (tmp_path / "lora/adapter_config.json").write_text(text, "latin-1")
        assert "give the folder of its base model as the source" in told("lora")
