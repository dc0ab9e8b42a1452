"""Which files of a folder are the model, and which names its tensors may have: nothing else is a reason to refuse."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint.folder import SAFETENSORS
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build
from tests.quantize.converting import values

Floats = NDArray[np.float32]
Change = Callable[[Path, dict[str, Floats]], Any]
INDEX = SAFETENSORS.index
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER = {"x": np.ones((2, 3), np.float32)}


def notices(folder: Path, tensors: dict[str, Floats]) -> tuple[str, ...]:
    """What is told of the conversion, whose result has the values of `tensors`."""
    out = folder.with_name("out.gguf")
    report = quantize(folder, out, "F32", force=True)
    with GgufFile.open(out) as file:
        assert np.array_equal(values(file, "token_embd.weight"), tensors[EMBEDDING])
        up = "layers.1.mlp.up_proj.weight"
        assert np.array_equal(values(file, "blk.1.ffn_up.weight"), tensors[f"model.{up}"])
    return report.notices


# ---- files beside the model --------------------------------------------------------------------------------------

BESIDE = [
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "value_head.safetensors",
    "._model.safetensors",
    "model-00001-of-00002.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
    "._config.json",
]


@pytest.mark.parametrize("name", BESIDE)
def test_other_files_beside_the_model(tmp_path: Path, name: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / name).write_bytes(b"\0\5\x16\7 none of our business")
    told = notices(tmp_path / "hf", tensors)
    assert [text.split()[0] for text in told] == ([name] if name.startswith("adapter") else [])


@pytest.mark.parametrize("name", ["adapter_model.bin", "value_head.bin", "._pytorch_model.bin", "consolidated.00.pth"])
@pytest.mark.parametrize("safetensors", ["adapter_model.safetensors", "value_head.safetensors", "other.safetensors"])
def test_other_files_beside_pytorch_model_bin(tmp_path: Path, name: str, safetensors: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").unlink()
    build.write_torch(tmp_path / "hf/pytorch_model.bin", tensors)
    (tmp_path / "hf" / name).write_bytes(b"no archive")
    tiny.write_safetensors(tmp_path / "hf" / safetensors, OTHER)
    notices(tmp_path / "hf", tensors)


def test_other_files_beside_shards(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", shards=3)
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "._model-00001-of-00003.safetensors"):
        tiny.write_safetensors(tmp_path / "hf" / name, OTHER)
    notices(tmp_path / "hf", tensors)


def test_the_only_file_of_another_name(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/model.fp16.safetensors")
    for name in (".hidden.safetensors", "value_head.safetensors", "adapter_model.safetensors"):
        tiny.write_safetensors(tmp_path / "hf" / name, OTHER)
    notices(tmp_path / "hf", tensors)
    tiny.write_safetensors(tmp_path / "hf/another.safetensors", OTHER)
    with pytest.raises(CheckpointError, match=r"another\.safetensors, model\.fp16.*name the one that is the model mod"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", force=True)


def test_the_single_file_before_an_index_that_does_not_list_it(tmp_path: Path) -> None:
    """As transformers does; and it is told."""
    tiny.write_checkpoint(tmp_path / "hf", shards=2, seed=1)
    tensors = tiny.write_checkpoint(tmp_path / "hf", seed=2)
    assert "model.safetensors is taken for the model" in notices(tmp_path / "hf", tensors)[0]
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert notices(tmp_path / "hf", tensors) == ()


def test_the_single_file_as_one_of_several(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    shards = {name: "b.safetensors" if "layers.1" in name else "model.safetensors" for name in tensors}
    for shard in ("model.safetensors", "b.safetensors"):
        tiny.write_safetensors(tmp_path / "hf" / shard, {n: t for n, t in tensors.items() if shards[n] == shard})
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert notices(tmp_path / "hf", tensors) == ()


# ---- links -------------------------------------------------------------------------------------------------------


def relink(folder: Path, store: Path) -> None:
    """Move every file of the folder into `store` and leave links."""
    store.mkdir(parents=True)
    for number, entry in enumerate(sorted(path for path in folder.iterdir() if not path.is_dir())):
        entry.rename(store / f"{number:04}")
        entry.symlink_to(store / f"{number:04}")


def test_links_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", shards=2)
    relink(tmp_path / "hf", tmp_path / "another/disk")
    assert notices(tmp_path / "hf", tensors) == ()
    relink(tmp_path / "hf", tmp_path / "hf/.store/of/links")
    assert notices(tmp_path / "hf", tensors) == ()
    (tmp_path / "link").symlink_to(tmp_path / "hf")
    assert notices(tmp_path / "link", tensors) == ()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_link_to_nothing_says_so(tmp_path: Path, name: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / name).unlink()
    (tmp_path / "hf" / name).symlink_to(".git/annex/objects/xy")
    with pytest.raises(CheckpointError, match=rf"{name}: a link to \.git/annex/objects/xy, which is not there; fetch"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_a_link_is_never_written_over(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    relink(tmp_path / "hf", tmp_path / "store")
    for path in sorted((tmp_path / "store").iterdir()):
        with pytest.raises(FileExistsError, match="part of the source"):
            quantize(tmp_path / "hf", path, force=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_link_to_a_pipe_is_no_file(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "hf/model.safetensors").unlink()
    (tmp_path / "hf/model.safetensors").symlink_to(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="a pipe or device, not a regular file"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


# ---- quantized or not --------------------------------------------------------------------------------------------

LEFT_IN = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize("given", [LEFT_IN, {"bits": 4}, None, {}])
def test_plain_weights_of_a_config_that_says_quantized(tmp_path: Path, given: Any) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", quantization_config=given)
    told = ("quantization_config in config.json ignored: the weights are not quantized",) if given else ()
    assert notices(tmp_path / "hf", tensors) == told


def raw_tensors(folder: Path, **entries: tuple[str, list[int], int]) -> None:
    """Add tensors of a dtype, shape and size to model.safetensors, of zeros."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
        body += bytes(size)
    tiny.write_raw_safetensors(path, json.dumps(header).encode(), body)


UP = "model.layers.1.mlp.up_proj."
QUANTIZED: dict[str, dict[str, tuple[str, list[int], int]]] = {
    "bitsandbytes": {f"{UP}weight": ("U8", [3072, 1], 3072), f"{UP}weight.absmax": ("F32", [96], 384)},
    "fp8": {f"{UP}weight": ("F8_E4M3", [96, 64], 6144), f"{UP}weight_scale": ("BF16", [1], 2)},
    "gptq": {f"{UP}qweight": ("I32", [8, 96], 3072), f"{UP}scales": ("F16", [1, 96], 192)},
    "scaled": {f"{UP}weight_scale": ("BF16", [96], 192)},
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_quantized_weights_are_refused_by_that_name(tmp_path: Path, method: str, key: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", **{key: {"quant_method": method}})
    tiny.write_weights(tmp_path / "hf", {n: t for n, t in tensors.items() if n != f"{UP}weight" or method == "scaled"})
    raw_tensors(tmp_path / "hf", **QUANTIZED[method])
    text = rf"config\.json: quantization_config: the weights are quantized \({method}\).* give the checkpoint they"
    with pytest.raises(CheckpointError, match=text):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_what_else_is_wrong_is_not_taken_for_quantization(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf", quantization_config=LEFT_IN)
    (tmp_path / "hf/tokenizer.model").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a sentencepiece model"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


# ---- tensors that nobody reads -----------------------------------------------------------------------------------


def test_types_of_tensors_that_nobody_reads_do_not_matter(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    raw_tensors(
        tmp_path / "hf",
        **{
            "model.vision_tower.vision_model.embeddings.position_ids": ("I64", [1, 4], 32),
            "model.vision_tower.scale": ("F32", [], 4),
            "model.layers.0.self_attn.rotary_emb.inv_freq": ("F64", [16], 128),
            "model.rotary_emb_local.inv_freq": ("F32", [16], 64),
            "v_head.summary.weight": ("F8_E4M3", [1, 64], 64),
        },
    )
    assert notices(tmp_path / "hf", tensors) == (
        "vision tower left out: 2 tensors",
        "value head left out: 1 tensors",
    )


def _edit_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
UNNEEDED = {
    "listed and stored nowhere": {HEAD: FIRST},
    "listed in a file of its own that is not there": {HEAD: "model-00003-of-00003.safetensors"},
    "vision tower not downloaded": {"vision_tower.x": "vision.safetensors", "multi_modal_projector.y": "p.safetensors"},
    "buffers no longer stored": {"model.layers.0.self_attn.rotary_emb.inv_freq": SECOND},
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_what_is_not_needed_is_not_missed(tmp_path: Path, name: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", shards=2)
    _edit_index(tmp_path / "hf", lambda listed: listed.update(UNNEEDED[name]))
    told = ("vision tower left out: 2 tensors",) if "vision" in name else ()
    assert notices(tmp_path / "hf", tensors) == told


@pytest.mark.parametrize("listed", [None, FIRST, SECOND])
@pytest.mark.parametrize("same", [True, False])
def test_an_output_is_found_wherever_it_is_stored(tmp_path: Path, listed: str | None, same: bool) -> None:
    """In the second file, whatever the index says of it."""
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", shards=2)
    head = tensors[EMBEDDING] if same else tensors[EMBEDDING] + 1
    kept = {name: value for i, (name, value) in enumerate(tensors.items()) if i % 2}
    tiny.write_safetensors(tmp_path / "hf" / SECOND, {**kept, HEAD: head})
    if listed is not None:
        _edit_index(tmp_path / "hf", lambda places: places.update({HEAD: listed}))
    notices(tmp_path / "hf", tensors)
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert ("output.weight" in file.tensors) != same
        assert same or np.array_equal(values(file, "output.weight"), head)


def test_of_two_outputs_the_listed_one_holds(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", shards=2)
    for number, shard in enumerate((FIRST, SECOND)):
        kept = {name: value for i, (name, value) in enumerate(tensors.items()) if i % 2 == number}
        tiny.write_safetensors(tmp_path / "hf" / shard, {**kept, HEAD: tensors[EMBEDDING] + number})
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: tensor 'lm_head.*00001-of-00002.*too: w"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")
    for number, shard in enumerate((FIRST, SECOND)):
        _edit_index(tmp_path / "hf", lambda places, shard=shard: places.update({HEAD: shard}))  # type: ignore[misc]
        notices(tmp_path / "hf", tensors)
        with GgufFile.open(tmp_path / "out.gguf") as file:
            assert ("output.weight" in file.tensors) == (number == 1)


# ---- names -------------------------------------------------------------------------------------------------------

WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "compiled layers": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "checkpointed": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "TRL": lambda name: f"pretrained_model.{name}",
    "anything": lambda name: f"my.student.{name}",
    "bare": lambda name: name.removeprefix("model."),
    "compiled model within": lambda name: name.replace("model.", "model._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("untied", [False, True])
def test_prefixes_of_wrappers(tmp_path: Path, wrapper: str, untied: bool) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", tie_word_embeddings=not untied)
    tiny.write_weights(tmp_path / "hf", {WRAPPED[wrapper](name): value for name, value in tensors.items()})
    assert notices(tmp_path / "hf", tensors) == ()
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert ("output.weight" in file.tensors) == untied


def test_a_wrapped_multimodal_model(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    document = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": tiny.make_config("gemma3")}
    (tmp_path / "hf/config.json").write_text(json.dumps(document))
    named = {f"_orig_mod.model.language_model.{n.removeprefix('model.')}": t for n, t in tensors.items()}
    tiny.write_weights(tmp_path / "hf", {**named, "_orig_mod.model.vision_tower.x": np.ones(3, np.float32)})
    assert notices(tmp_path / "hf", tensors) == ("vision tower left out: 1 tensors",)


def test_wrapped_and_bare_are_the_same_tensor(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_weights(tmp_path / "hf", {**tensors, f"_orig_mod.{EMBEDDING}": tensors[EMBEDDING]})
    with pytest.raises(CheckpointError, match=r"'_orig_mod\.model\.embed_tokens\.weight' are the same tensor"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("part", ["q_proj.lora_A.default.weight", "q_proj.base_layer.weight", "q_proj.lora_B.weight"])
def test_an_unmerged_adapter_is_called_so(tmp_path: Path, prefix: str, part: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    named = {prefix + name: value for name, value in tensors.items()}
    extra = f"{prefix}model.layers.0.self_attn.{part}"
    tiny.write_weights(tmp_path / "hf", {**named, extra: np.ones((4, 64), np.float32)})
    with pytest.raises(CheckpointError, match=r"hf: the weights hold an adapter that is not merged .*merge_and_unload"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_names_that_are_not_known_are_shown(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_safetensors(tmp_path / "hf/model.safetensors", {"transformer.wte": np.ones((3, 32), np.float32)})
    with pytest.raises(CheckpointError, match=r"35 tensors are missing .*; the weights hold 1: transformer\.wte$"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")
