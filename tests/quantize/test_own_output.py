"""Output and embedding, tied or not: the values decide, whatever config.json says and wherever they are stored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.commands import cli
from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint import own_output
from edge_gemma.quantize.checkpoint.safetensors import read_safetensors
from edge_gemma.quantize.convert import open_source
from edge_gemma.quantize.verification import verify
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build
from tests.quantize.converting import values

Floats = NDArray[np.float32]
EMBEDDING = "model.embed_tokens.weight"
TOLD = "lm_head.weight is not the embedding, though config.json ties the two: kept as a matrix of its own"


def trained(embedding: Floats, row: int = -1) -> Floats:
    """Another matrix than the embedding in one value."""
    head = embedding.copy()
    head[row, 3] += 0.5
    return head


def output(path: Path) -> Floats | None:
    with GgufFile.open(path) as file:
        return values(file, "output.weight").copy() if "output.weight" in file.tensors else None


def converted(folder: Path) -> tuple[Floats | None, tuple[str, ...]]:
    out = folder.with_name("out.gguf")
    report = quantize(folder, out, "F32", force=True)
    return output(out), report.notices


@pytest.mark.parametrize("tied", [True, ..., None, False])
@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("slab", [1 << 21, 100])
def test_another_output_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: Any, row: int, slab: int
) -> None:
    monkeypatch.setattr(own_output, "SLAB_VALUES", slab)
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", tie_word_embeddings=tied)
    head = trained(tensors[EMBEDDING], row)
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": head})
    found, notices = converted(tmp_path / "hf")
    assert found is not None and np.array_equal(found, head)
    assert (TOLD in notices) == (tied is not False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_embedding_again_is_stored_once(tmp_path: Path, tied: bool, dtype: str) -> None:
    """Also in another format, if the values are the same."""
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma2", tie_word_embeddings=tied)
    tensors["lm_head.weight"] = tensors[EMBEDDING] = (
        (tensors[EMBEDDING].view(np.uint32) & 0xFFFF0000).view(np.float32).copy()
    )
    write_output_apart(tmp_path / "hf", tensors, dtype)
    found, notices = converted(tmp_path / "hf")
    assert found is None
    assert notices == (() if tied else ("lm_head.weight is the embedding again: stored once",))


def write_output_apart(folder: Path, tensors: dict[str, Floats], dtype: str) -> None:
    """The output in a file and a dtype of its own, with an index."""
    tiny.write_safetensors(folder / "a.safetensors", {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    tiny.write_safetensors(folder / "b.safetensors", {"lm_head.weight": tensors["lm_head.weight"]}, dtype)
    (folder / "model.safetensors").unlink()
    places = {name: "b.safetensors" if name == "lm_head.weight" else "a.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("same", [True, False])
def test_pytorch_files(tmp_path: Path, same: bool) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    (tmp_path / "hf/model.safetensors").unlink()
    head = tensors[EMBEDDING] if same else trained(tensors[EMBEDDING])
    build.write_torch(tmp_path / "hf/pytorch_model.bin", {**tensors, "lm_head.weight": head})
    found, notices = converted(tmp_path / "hf")
    assert (found is None) == same and (TOLD in notices) != same
    assert same or (found is not None and np.array_equal(found, head))


@pytest.mark.parametrize("names", [("language_model.model.", "language_model."), ("model.language_model.", "")])
@pytest.mark.parametrize("same", [True, False])
def test_multimodal(tmp_path: Path, names: tuple[str, str], same: bool) -> None:
    folder = tmp_path / "hf"
    tensors = tiny.write_checkpoint(folder, "gemma3")
    document = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": tiny.make_config("gemma3")}
    (folder / "config.json").write_text(json.dumps(document))
    head = tensors[EMBEDDING] if same else trained(tensors[EMBEDDING], 5)
    renamed = {names[0] + name.removeprefix("model."): value for name, value in tensors.items()}
    tiny.write_weights(folder, {**renamed, f"{names[1]}lm_head.weight": head})
    found, notices = converted(folder)
    assert (found is None) == same and (TOLD in notices) != same
    assert same or (found is not None and np.array_equal(found, head))


def test_rows_without_a_token_do_not_count(tmp_path: Path) -> None:
    embedding = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    tiny.write_safetensors(tmp_path / "x.safetensors", {"a": embedding, "b": trained(embedding, 7), "c": embedding[:7]})
    stored = read_safetensors(tmp_path / "x.safetensors")
    assert own_output.same_rows(stored["a"], stored["b"], 7) and not own_output.same_rows(stored["a"], stored["b"], 8)
    assert own_output.same_rows(stored["a"], stored["c"], 7) and not own_output.same_rows(stored["a"], stored["c"], 8)


def test_a_tied_model_saved_under_the_other_name(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    embedding = tensors.pop(EMBEDDING)
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": embedding})
    found, notices = converted(tmp_path / "hf")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert found is None and np.array_equal(values(file, "token_embd.weight"), embedding)
    assert any("lm_head.weight is taken" in text for text in notices)


def test_an_untied_model_without_output_says_what_to_do(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/config.json").write_text(json.dumps(tiny.make_config("gemma2", tie_word_embeddings=False)))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight; .* write tie_word_embeddings: true into config\.json"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_an_output_of_another_shape_is_an_error(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": np.ones((12, 64), np.float32)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \(12, 64\)"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_verify_misses_the_output(tmp_path: Path) -> None:
    """A file of a tied model is not what this checkpoint says."""
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    quantize(tmp_path / "hf", tmp_path / "tied.gguf", "Q8_0")
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": trained(tensors[EMBEDDING])})
    assert "output.weight: is not in the file" in verify(tmp_path / "tied.gguf", open_source(tmp_path / "hf")).problems
    quantize(tmp_path / "hf", tmp_path / "own.gguf", "Q8_0")
    assert verify(tmp_path / "own.gguf", open_source(tmp_path / "hf")).ok


def test_command_line_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": trained(tensors[EMBEDDING])})
    assert cli.main(["quantize", str(tmp_path / "hf"), str(tmp_path / "out.gguf")]) == 0
    told = capsys.readouterr().err
    assert f"note: {TOLD}" in told and "llama.cpp does not load that for gemma2" in told
