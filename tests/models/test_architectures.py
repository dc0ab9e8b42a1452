"""What holds for every architecture: its table of tensors, its two readers, and that a file of it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_gemma import Gemma
from edge_gemma.engine.memory_plan import default_chunk, scratch_bytes
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.states import AttentionState, Rope
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.registry import ARCHITECTURES, read_config
from edge_gemma.models.weights import Weights
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint.hf_config import read_model
from tests.conftest import TinyGguf
from tests.gguf_builder import f32, runnable_gemma
from tests.goldens.cases import token_ids
from tests.goldens.every_case import CASES, CONTINUING, weights, write_checkpoint
from tests.goldens.every_case import config as config_json
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import convert

EVERY = pytest.mark.parametrize("architecture", CONTINUING)
NOT_IN_LLAMA_CPP = {"vaultgemma"}
CASE_OF = {case.architecture: name for name, case in CASES.items() if not getattr(case, "experts", 0)}


def config_of(architecture: str, folder: Path) -> Config:
    path = folder / "model.gguf"
    path.write_bytes(runnable_gemma(architecture).build())
    with GgufFile.open(path) as file:
        return read_config(file)


@EVERY
def test_an_architecture_has_a_golden(architecture: str) -> None:
    assert architecture in CASE_OF


def test_classes_of_transformers_are_of_one_architecture() -> None:
    classes = [name for model in ARCHITECTURES.values() for name in (*model.hf_classes, *model.hf_multimodal_classes)]
    assert len(classes) == len(set(classes))


@EVERY
def test_names_of_tensors_are_unique_and_shapes_positive(tmp_path: Path, architecture: str) -> None:
    config = config_of(architecture, tmp_path)
    specs = config.tensors()
    assert len({spec.name for spec in specs}) == len({spec.hf_name for spec in specs}) == len(specs)
    for spec in specs:
        assert len(spec.shape) in (1, 2) and min(spec.shape) > 0
    assert {spec.layer for spec in specs} == {None, *range(len(config.layers))}


@EVERY
def test_linear_modules_have_their_place_in_the_table(tmp_path: Path, architecture: str) -> None:
    """What adapters go by."""
    specs = [spec for spec in config_of(architecture, tmp_path).tensors() if spec.layer == 0 and len(spec.shape) == 2]
    modules = {spec.hf_name.removeprefix("layers.0.").removesuffix(".weight"): spec.role for spec in specs}
    assert modules.items() <= ARCHITECTURES[architecture].matrices.items()
    if architecture != "gemma4":  # only some of its sizes have them all, see test_gemma4_conversion.py
        assert modules == ARCHITECTURES[architecture].matrices


@EVERY
def test_bound_weights_are_those_of_the_table(tmp_path: Path, architecture: str) -> None:
    config = config_of(architecture, tmp_path)
    with GgufFile.open(tmp_path / "model.gguf") as file:
        bound = list(Weights.bind(file, config).tensors())
        assert {tensor.name for tensor in bound} == set(file.tensors)
    expected = [(spec.name, spec.shape) for spec in config.tensors() if not spec.optional]
    assert [(tensor.name, tensor.shape) for tensor in bound] == expected


@EVERY
def test_the_table_names_what_a_checkpoint_holds(architecture: str) -> None:
    """Names and shapes of a case are written down independently."""
    case = CASES[CASE_OF[architecture]]
    specs = read_model(config_json(case)).config.tensors()
    table = {spec.hf_name: spec.shape for spec in specs}
    held = {name.removeprefix("model."): values.shape for name, values in weights(case).items()}
    assert held.items() <= table.items()
    assert {spec.hf_name for spec in specs if spec.hf_name and not spec.optional} <= held.keys()
    assert case.tied or "lm_head.weight" in held


@EVERY
def test_both_readers_make_the_same_configuration(tmp_path: Path, architecture: str) -> None:
    """A checkpoint's, and that of the file made of it; numbers are float32 there."""
    path = convert(tmp_path, architecture)
    expected = read_model(json.loads((tmp_path / "hf/config.json").read_text())).config
    with GgufFile.open(path) as file:
        found = read_config(file)
    assert found.rms_eps == np.float32(expected.rms_eps) and found.attn_scale == np.float32(expected.attn_scale)
    plain = replace(found, rms_eps=expected.rms_eps, attn_scale=expected.attn_scale)
    assert plain == without_factors(expected)


def without_factors(config: Config) -> Config:
    """What divides frequencies pair by pair is in a tensor of a file."""
    layers = (replace(layer, rope=replace(layer.rope, factors=None)) for layer in config.layers)
    return replace(config, layers=tuple(layers))


@EVERY
def test_what_is_usual_is_guessed(tmp_path: Path, architecture: str) -> None:
    """Where nothing is unusual, a reader that guesses is right."""
    config = config_of(architecture, tmp_path)
    assert config.model.guessed(config).attn_scale == config.attn_scale
    odd = replace(config, attn_scale=0.5)
    assert odd.model.guessed(odd).attn_scale == config.attn_scale


@EVERY
def test_layers_may_differ(tmp_path: Path, architecture: str) -> None:
    """Shapes of tensors, what is kept of a sequence, and what threads work in follow each layer."""
    config = config_of(architecture, tmp_path)
    small, *others = config.layers
    wide = replace(small, n_kv_heads=1, head_dim=256, d_ff=4096, rope=Rope(256, 1e4), window=None)
    mixed = replace(config, layers=(small, wide, *others[1:]))
    shapes = {spec.name: spec.shape for spec in mixed.tensors()}
    d, heads = config.d_model, config.n_heads
    assert shapes["blk.1.attn_q.weight"] == (heads * 256, d) and shapes["blk.1.attn_k.weight"] == (256, d)
    assert shapes["blk.1.ffn_down.weight"] == (d, 4096)
    same = {spec.name: spec.shape for spec in config.tensors() if spec.layer != 1 and spec.role != "rope_freqs"}
    assert {name: shape for name, shape in shapes.items() if name in same} == same
    assert mixed.states == [AttentionState(each.n_kv_heads, each.head_dim, each.window) for each in mixed.layers]
    assert mixed.rope(1).dims == 256 and mixed.rope(0) == config.rope(0)
    all_wide = replace(config, layers=(wide,) * 4)
    assert scratch_bytes(config, 32) < scratch_bytes(mixed, 32) == scratch_bytes(all_wide, 32)
    assert default_chunk(mixed) == default_chunk(all_wide)


@EVERY
def test_a_file_of_it_runs(tmp_path: Path, architecture: str) -> None:
    config_of(architecture, tmp_path)
    with Gemma(tmp_path / "model.gguf", threads=1) as model:
        assert np.isfinite(model.logits([2, 5, 7])).all()


@EVERY
def test_a_converted_folder_has_the_logits_of_the_same_weights(
    tmp_path: Path, tiny_gguf: TinyGguf, architecture: str
) -> None:
    """To the bit; that they are those of transformers is told by the goldens."""
    name = CASE_OF[architecture]
    case = CASES[name]
    write_checkpoint(case, tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    ids = token_ids(case, case.lengths[0])
    logits = []
    for path in (tmp_path / "out.gguf", tiny_gguf(name)):
        with Gemma(path, context=256, threads=1, kv_type="f32") as model:
            logits.append(model.logits(ids))
    assert np.array_equal(*logits)


@EVERY
def test_llama_cpp_is_spoken_of_where_it_loads_the_architecture(tmp_path: Path, architecture: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf", architecture)
    notices = quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0").notices
    assert (f"llama.cpp does not load {architecture}" in notices) == (architecture in NOT_IN_LLAMA_CPP)


def test_every_architecture_says_all_of_itself() -> None:
    asked = [name for name in Architecture.__annotations__ if name != "return"]
    for model in ARCHITECTURES.values():
        assert all(hasattr(model, name) for name in asked), model.name


# ---- VaultGemma --------------------------------------------------------------------------------------------------


def test_vaultgemma_has_what_its_file_says(tmp_path: Path) -> None:
    """Without keys neither soft-caps nor local layers, unlike Gemma 2."""
    config = config_of("vaultgemma", tmp_path)
    assert (config.attn_softcap, config.final_softcap) == (None, None)
    assert config.local_layers == (True, False, True, False)  # there is a window
    builder = runnable_gemma("vaultgemma").set("vaultgemma.attention.sliding_window", None)
    builder.set("vaultgemma.attn_logit_softcapping", f32(50)).set("vaultgemma.final_logit_softcapping", f32(30))
    (tmp_path / "model.gguf").write_bytes(builder.build())
    with GgufFile.open(tmp_path / "model.gguf") as file:
        config = read_config(file)
    assert (config.attn_softcap, config.final_softcap, config.local_layers) == (50, 30, (False,) * 4)


def test_vaultgemma_takes_the_defaults_of_transformers() -> None:
    json_ = {"architectures": ["VaultGemmaForCausalLM"]}
    config = read_model(json_).config
    assert (config.attn_softcap, config.final_softcap) == (50, 30)
    assert config.local_layers == (True, False) * 13 and config.layers[0].window == 4096
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = read_model(json_ | off).config
    assert (config.attn_softcap, config.final_softcap) == (None, None)


def test_vaultgemma_has_no_norms_after_its_branches(tmp_path: Path) -> None:
    roles = {spec.role for spec in config_of("vaultgemma", tmp_path).tensors()}
    assert {"attn_norm", "ffn_norm"} <= roles and not {"post_attention_norm", "post_ffw_norm"} & roles
