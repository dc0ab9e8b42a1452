"""LoRA adapters: merged as PEFT merges them, in slabs; what cannot be merged is named and refused."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_gemma.commands import quantize as cli
from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import pipeline, quantize
from edge_gemma.quantize.checkpoint import lora
from edge_gemma.quantize.checkpoint.lora import Delta, open_adapter
from edge_gemma.quantize.checkpoint.safetensors import read_safetensors
from edge_gemma.quantize.checkpoint.torch_file import read_torch
from tests.goldens.every_case import CONTINUING
from tests.goldens.llama_cases import in_pairs
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build

DATA = Path(__file__).parent / "data"
Floats = NDArray[np.float32]
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}


def factors(shape: tuple[int, int], rank: int, seed: int = 0) -> tuple[Floats, Floats]:
    """A (rank, columns) and B (rows, rank)."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))
    return (a / 8).astype(np.float32), (b / 8).astype(np.float32)


def write_adapter(folder: Path, tensors: Mapping[str, Floats], *, torch: bool = False, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    if torch:
        build.write_torch(folder / "adapter_model.bin", tensors)
    else:
        tiny.write_safetensors(folder / "adapter_model.safetensors", tensors)


def adapter_tensors(
    weights: Mapping[str, Floats], prefix: str = "base_model.model.model.", rank: int = 4, seed: int = 0
) -> dict[str, Floats]:
    """Factors for every matrix of layer 1 of `weights`."""
    tensors: dict[str, Floats] = {}
    for number, module in enumerate(MODULES):
        rows, columns = weights[f"model.layers.1.{module}.weight"].shape
        a, b = factors((rows, columns), rank, seed + number)
        tensors |= {f"{prefix}layers.1.{module}.lora_A.weight": a, f"{prefix}layers.1.{module}.lora_B.weight": b}
    return tensors


def matrices(path: Path) -> dict[str, Floats]:
    with GgufFile.open(path, strict=True) as file:
        return {
            name: gguf.quants.dequantize(file.data(t), gguf.GGMLQuantizationType[t.format.name]).reshape(t.shape).copy()
            for name, t in file.tensors.items()
        }


def rounding(*parts: Floats) -> float:
    """A bound for float32 sums of a few dozen terms of these sizes."""
    return 1e-5 * float(sum(np.abs(part).max() for part in parts))


@pytest.mark.parametrize("torch", [False, True])
@pytest.mark.parametrize("architecture", CONTINUING)
def test_every_matrix_gets_its_product(tmp_path: Path, architecture: str, torch: bool) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf", architecture)
    tensors = adapter_tensors(weights)
    write_adapter(tmp_path / "lora", tensors, torch=torch)
    quantize(tmp_path / "hf", tmp_path / "base.gguf", "F32")
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32", lora=[(tmp_path / "lora", 0.5)])
    assert "merged lora into 7 matrices" in report.notices
    base, out = matrices(tmp_path / "base.gguf"), matrices(tmp_path / "out.gguf")
    for module, name in MODULES.items():
        key = f"blk.1.{name}.weight"
        a, b = (tensors[f"base_model.model.model.layers.1.{module}.lora_{x}.weight"].astype(float) for x in "AB")
        expected = weights[f"model.layers.1.{module}.weight"] + 0.5 * (8 / 4) * (b @ a)
        if architecture == "llama" and module in HEADS:
            expected = in_pairs(expected, HEADS[module])
        assert np.abs(out[key] - expected).max() <= rounding(expected), key
        assert np.abs(out[key] - base.pop(key)).max() > 0.01
    assert all(np.array_equal(out[key], before) for key, before in base.items())


PREFIXES = [
    "base_model.model.model.",
    "base_model.model.model.language_model.",
    "base_model.model.language_model.model.",
    "base_model.model.language_model.",
    "model.",
    "",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_every_class(tmp_path: Path, prefix: str) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights, prefix))
    assert sorted(open_adapter(tmp_path / "lora").deltas) == sorted(f"blk.1.{n}.weight" for n in MODULES.values())


def test_adapter_name_within_tensor_names(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    named = {name.replace(".weight", ".default.weight"): v for name, v in adapter_tensors(weights).items()}
    write_adapter(tmp_path / "lora", named)
    assert len(open_adapter(tmp_path / "lora").deltas) == 7


RECORDED = {
    "adapter-gemma2": ["blk.1.attn_q.weight"],
    "adapter-bin": ["blk.0.attn_output.weight"],
    "adapter-patterns": ["blk.1.attn_v.weight", "blk.1.ffn_up.weight"],
    "adapter-multimodal": ["blk.0.attn_k.weight"],
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_peft_computes(name: str) -> None:
    """Adapters saved by PEFT: plain, rank-stabilized, with ranks and alphas by pattern, with a vision tower."""
    adapter = open_adapter(DATA / name)
    assert sorted(adapter.deltas) == RECORDED[name]
    expected = {key: t for key, t in read_torch(DATA / name / "expected.pt").items() if "vision" not in key}
    for delta in adapter.deltas.values():
        module = delta.a.name.removesuffix(".lora_A.weight")
        sampled = expected.pop(module)
        wanted = sampled.rows(0, sampled.shape[0])
        assert np.abs(delta.rows(0, delta.shape[0])[::4, ::4] - wanted).max() <= rounding(wanted)
    assert not expected


def test_vision_tower_is_left_out_and_told() -> None:
    assert open_adapter(DATA / "adapter-multimodal").notices == [
        "adapter-multimodal: 2 tensors for the vision tower left out"
    ]


def test_several_adapters_add_up_in_their_order(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    for name, seed in (("a", 0), ("b", 100)):
        write_adapter(tmp_path / name, adapter_tensors(weights, seed=seed))
    key = "blk.1.ffn_down.weight"
    a, b = (open_adapter(tmp_path / n, s).deltas[key].rows(0, 64) for n, s in (("a", 1.0), ("b", -0.25)))
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32", lora=[(tmp_path / "a", 1.0), (tmp_path / "b", -0.25)])
    base = weights["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(matrices(tmp_path / "out.gguf")[key], (base + a) + b)


def test_scale_zero_changes_nothing(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    quantize(tmp_path / "hf", tmp_path / "a.gguf", "Q8_0")
    quantize(tmp_path / "hf", tmp_path / "b.gguf", "Q8_0", lora=[(tmp_path / "lora", 0.0)])
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_bytes_depend_on_neither_slabs_nor_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights, rank=19), r=19)
    seen = set()
    for threads, slab in ((1, 1 << 20), (2, 1 << 10), (3, 7)):
        monkeypatch.setattr(pipeline, "SLAB_VALUES", slab)
        quantize(tmp_path / "hf", tmp_path / f"{slab}.gguf", threads=threads, lora=[(tmp_path / "lora", 1.0)])
        seen.add((tmp_path / f"{slab}.gguf").read_bytes())
    assert len(seen) == 1


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 70), rank=st.integers(1, 40), data=st.data())
def test_any_rows_of_any_product(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, rank: int, data: Any
) -> None:
    path = tmp_path_factory.mktemp("lora") / "x.safetensors"
    a, b = factors((rows, columns), rank)
    tiny.write_safetensors(path, {"a": a, "b": b})
    stored = read_safetensors(path)
    delta = Delta(stored["b"], stored["a"], 3.0)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    whole = delta.rows(0, rows)
    assert np.array_equal(delta.rows(start, stop), whole[start:stop])
    assert np.abs(whole - 3.0 * (b.astype(float) @ a)).max() <= 1e-5 * (1 + np.abs(whole).max())


def test_large_ranks_are_taken_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = factors((8, 32), 33)
    tiny.write_safetensors(tmp_path / "x.safetensors", {"a": a, "b": b})
    stored = read_safetensors(tmp_path / "x.safetensors")
    delta = Delta(stored["b"], stored["a"], 1.0)
    whole = delta.rows(0, 8)
    monkeypatch.setattr(lora, "FACTOR_VALUES", 32 * 10)
    assert np.abs(delta.rows(0, 8) - whole).max() <= rounding(whole)


def test_a_gguf_source_takes_adapters_too(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    quantize(tmp_path / "hf", tmp_path / "base.gguf", "F32")
    pair = [(tmp_path / "lora", 1.0)]
    quantize(tmp_path / "hf", tmp_path / "a.gguf", "Q8_0", lora=pair)
    quantize(tmp_path / "base.gguf", tmp_path / "b.gguf", "Q8_0", lora=pair)
    a, b = matrices(tmp_path / "a.gguf"), matrices(tmp_path / "b.gguf")
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_quantized_source_is_quantized_again_only_if_asked(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    quantize(tmp_path / "hf", tmp_path / "q8.gguf", "Q8_0")
    adapters = [(tmp_path / "lora", 0.5), (tmp_path / "lora", 0.5)]
    with pytest.raises(CheckpointError, match=r"blk\.1\..* \+ lora \+ lora: is Q8_0 already.*--requantize"):
        quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q8_0", lora=adapters)
    quantize(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q8_0", lora=adapters, requantize=True)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_dora": True}, "use_dora: DoRA is not merged"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"lora_bias": True}, "lora_bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save: whole modules"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base model"),
    ({"init_lora_weights": "loftq"}, "'loftq' changes the base model"),
    ({"r": 0}, "rank must be an integer"),
    ({"r": True}, "rank must be an integer"),
    ({"r": 5}, "has rank 4; adapter_config.json says 5"),
    ({"lora_alpha": "8"}, "alpha must be a number"),
    ({"lora_alpha": 1e300}, "alpha must be a number"),
    ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern must give a number"),
    ({"rank_pattern": {"q_proj": "x"}}, "rank must be an integer"),
    ({"alpha_pattern": []}, ""),
    ({"alpha_pattern": [1]}, "alpha_pattern must give"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_configurations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights), **changes)
    if not message:
        open_adapter(tmp_path / "lora")
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        open_adapter(tmp_path / "lora")
    assert "adapter_config.json" in str(caught.value)


Q = "base_model.model.model.layers.1.self_attn.q_proj"
TENSORS: list[tuple[dict[str, tuple[int, ...]], str]] = [
    ({f"{Q}.lora_A.weight": ...}, "has factor B only"),
    ({f"{Q}.lora_B.weight": (128, 5)}, "cannot be multiplied"),
    ({f"{Q}.lora_A.weight": (4,)}, "cannot be multiplied"),
    ({f"{Q}.lora_B.weight": (96, 4)}, r"attn_q.weight of the model has shape \(128, 64\), .*\(96, 64\).*'some/base'"),
    ({f"{Q}.lora_A.weight": (4, 32)}, r"the adapter's change \(128, 32\); the adapter was made for 'some/base'"),
    ({f"{Q}.lora_magnitude_vector": (128,)}, "DoRA is not merged"),
    ({f"{Q}.lora_B.bias": (128,)}, "trained biases are not merged"),
    ({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 384)}, "token embedding"),
    ({"base_model.model.model.norm.weight": (64,)}, r"'base_model.model.model.norm.weight' is no LoRA factor"),
    ({f"model.{'layers.1.self_attn.q_proj'}.lora_A.weight": (4, 64)}, "are the same factor"),
    ({f"layers.1.self_attn.q_proj.lora_{x}.weight": s for x, s in (("A", (4, 64)), ("B", (128, 4)))}, "same matrix"),
    ({f"{Q[:-6]}x_proj.lora_{x}.weight": (4, 4) for x in "AB"}, "x_proj' is no matrix that is merged"),
    ({f"{Q.replace('layers.1', 'layers.01')}.lora_{x}.weight": (4, 4) for x in "AB"}, "is no matrix that is merged"),
    (
        {f"{Q.replace('layers.1', 'layers.7')}.lora_{x}.weight": (4, 4) for x in "AB"},
        r"the model has no blk.7.*some/base",
    ),
    (
        {f"base_model.model.lm_head.lora_{x}.weight": (4, 4) for x in "AB"},
        r"output.weight of the model has shape \(384, 64\)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), TENSORS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_every_tensor_of_an_adapter_must_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    tensors = adapter_tensors(weights)
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape is not ...:
            tensors[name] = np.ones(shape, np.float32)
    write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        quantize(tmp_path / "hf", tmp_path / "out.gguf", lora=[(tmp_path / "lora", 1.0)])
    assert "adapter_model.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_untied_output_can_be_adapted(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf", "gemma3", tie_word_embeddings=False)
    a, b = factors((tiny.VOCAB, 64), 4)
    name = "base_model.model.lm_head.lora_"
    write_adapter(tmp_path / "lora", {f"{name}A.weight": a, f"{name}B.weight": b})
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32", lora=[(tmp_path / "lora", 1.0)])
    expected = weights["lm_head.weight"] + 2 * (b.astype(float) @ a)
    assert np.abs(matrices(tmp_path / "out.gguf")["output.weight"] - expected).max() <= rounding(expected)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_an_adapter_of_a_tied_output_makes_it_a_matrix_of_its_own(tmp_path: Path, architecture: str) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf", architecture)
    embedding = weights["model.embed_tokens.weight"]
    a, b = factors((tiny.VOCAB, 64), 4)
    name = "base_model.model.lm_head.lora_"
    write_adapter(tmp_path / "lora", {f"{name}A.weight": a, f"{name}B.weight": b})
    quantize(tmp_path / "hf", tmp_path / "wide.gguf", "F32")
    for source in ("hf", "wide.gguf"):
        out = tmp_path / "out.gguf"
        report = quantize(tmp_path / source, out, "F32", lora=[(tmp_path / "lora", 1.0)], force=True)
        found = matrices(out)
        assert np.array_equal(found["token_embd.weight"], embedding)
        expected = embedding + 2 * (b.astype(float) @ a)
        assert np.abs(found["output.weight"] - expected).max() <= rounding(expected)
        assert "lora changes the output, which was the embedding: it gets a matrix of its own" in report.notices
        told = "output matrix of its own: llama.cpp does not load that for gemma2" in report.notices
        assert told == (architecture == "gemma2")


def test_values_that_are_not_finite_name_the_adapter(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    tensors = adapter_tensors(weights)
    tensors[f"{Q}.lora_B.weight"][5, 0] = np.nan
    write_adapter(tmp_path / "style", tensors)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight \+ style: row 5: 64 values"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", lora=[(tmp_path / "style", 1.0)])


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        open_adapter(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        open_adapter(tmp_path)
    write_adapter(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        open_adapter(tmp_path)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match="cannot be merged"):
            open_adapter(tmp_path, scale)


def test_the_output_is_never_part_of_an_adapter(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "lora", adapter_tensors(weights))
    before = (tmp_path / "lora/adapter_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="part of the source"):
        quantize(
            tmp_path / "hf",
            tmp_path / "lora/adapter_model.safetensors",
            force=True,
            lora=[(tmp_path / "lora", 1.0)],
        )
    assert (tmp_path / "lora/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a/b", "a/b", 1.0),
        ("a/b:0.5", "a/b", 0.5),
        ("a:b", "a:b", 1.0),
        ("a:b:-2", "a:b", -2.0),
        ("C:\\x", "C:\\x", 1.0),
        ("12", "12", 1.0),
        (":0.5", ":0.5", 1.0),
    ],
)
def test_path_and_scale_of_the_command_line(text: str, path: str, scale: float) -> None:
    assert cli.parse_lora(text) == (Path(path), scale)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf")
    write_adapter(tmp_path / "a", adapter_tensors(weights))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    arguments = ["--lora", str(tmp_path / "a"), "--lora", f"{tmp_path / 'b'}:0.5"]
    assert cli.main([str(tmp_path / "hf"), str(tmp_path / "x.gguf"), *arguments]) == 0
    assert "note: merged b into 7 matrices" in capsys.readouterr().err
    quantize(tmp_path / "hf", tmp_path / "y.gguf", lora=[(tmp_path / "a", 1.0), (tmp_path / "b", 0.5)])
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "y.gguf").read_bytes()
