"""Which format each tensor gets: llama-quantize's choices as recorded, what the user overrides, the size of presets."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.commands import quantize as cli
from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile
from edge_gemma.gguf.values import f32, string
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.registry import ARCHITECTURES
from edge_gemma.quantize import blocks, presets, quantize
from edge_gemma.quantize.checkpoint.source import Source, SourceTensor
from edge_gemma.quantize.convert import plan
from edge_gemma.quantize.output.provenance import Provenance
from edge_gemma.quantize.plan import make_plan
from edge_gemma.quantize.recipe import MIXES, WRITTEN, Model, Overrides, choose
from tests.goldens.gemma4_cases import Gemma4Case, gguf_name
from tests.goldens.gemma4_cases import shapes as shapes_of_case
from tests.quantize import tiny_checkpoint as tiny

RECORD: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data/recipes.json").read_text())


def shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the matrices of a model."""
    width, hidden = sizes["width"], sizes["hidden"]
    q, kv = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    if sizes["architecture"] == "gemma4":
        return gemma4_shapes(sizes)
    result: dict[str, tuple[int, ...]] = {"token_embd": (263, width)}
    if not sizes["tied"]:
        result["output"] = (263, width)
    for layer in range(sizes["layers"]):
        roles = {
            "attn_q": (q, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, q),
            "ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden),
        }  # fmt: skip
        result |= {f"blk.{layer}.{role}": shape for role, shape in roles.items()}
    return {f"{name}.weight": shape for name, shape in result.items()}


def gemma4_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Those that are not kept as they are."""
    given = {key: value for key, value in sizes.items() if key not in ("architecture", "pure")}
    case = record_recipes_case(**given)
    found = {gguf_name(name): shape for name, shape in shapes_of_case(case).items() if len(shape) > 1}
    return {name: shape for name, shape in found.items() if "ffn_gate_inp" not in name and "_proj." not in name}


def record_recipes_case(layers: int, single: bool, heads: int, kv_heads: int, head_dim: int, **same: Any) -> Gemma4Case:
    """The case that the record was made with."""
    local = "".join("G" if i % 6 == 5 else "L" for i in range(layers - 1)) + "G"
    return Gemma4Case(
        name="x", local=local, heads=heads, kv_heads=kv_heads, global_kv_heads=kv_heads, head_dim=head_dim,
        global_head_dim=head_dim, single=single, **same,
    )  # fmt: skip


def model_of(sizes: dict[str, Any], names: Collection[str]) -> Model:
    values = [layer for layer in range(sizes["layers"]) if f"blk.{layer}.attn_v.weight" in names]
    queries = sizes["heads"] // sizes["kv_heads"]
    experts, architecture = sizes.get("experts", 0), sizes["architecture"]
    return Model(sizes["layers"], queries, architecture=architecture, experts=experts, values=tuple(values))


def recorded(tensors: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Tensor names and formats of a record."""
    for name, places in tensors.items():
        for place in places.split():
            role, _, layers = place.partition(":")
            names = [f"blk.{layer}.{role}" for layer in layers.split(",")] if layers else [role]
            yield from ((f"{stem}.weight", name) for stem in names)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model", RECORD)
def test_formats_are_those_of_llama_quantize(model: str, mix: str) -> None:
    sizes, expected = RECORD[model]["sizes"], RECORD[model][mix]
    matrices, said = shapes(sizes), Overrides(pure=sizes["pure"])
    facts = model_of(sizes, matrices)
    chosen = {
        name: choose(MIXES[mix], facts, name, shape, said, tied=sizes["tied"]).name for name, shape in matrices.items()
    }
    assert chosen == dict(recorded(expected["tensors"]))
    assert MIXES[mix].file_type == expected["file_type"]


def formats(path: Path) -> dict[str, str]:
    with GgufFile.open(path) as file:
        return {name: tensor.format.name for name, tensor in file.tensors.items() if len(tensor.shape) == 2}


def test_overrides_decide_in_their_order(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    said = Overrides((("blk.1.*attn_v", "F16"), ("attn_[vk]", "Q5_1"), ("token", "Q4_1")), embedding="F32")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "IQ4_NL", overrides=said)
    got = formats(tmp_path / "out.gguf")
    assert got["blk.1.attn_v.weight"] == "F16"
    assert got["blk.0.attn_v.weight"] == got["blk.1.attn_k.weight"] == "Q5_1"
    assert got["token_embd.weight"] == "Q4_1"
    assert got["blk.0.attn_q.weight"] == "IQ4_NL"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Overrides(embedding="Q5_0"), "Q5_0"),
        (Overrides(output="Q5_1"), "Q5_1"),
        (Overrides(embedding="Q5_0", output="Q5_1"), "Q5_0"),
        (Overrides(pure=True), "Q4_0"),
        (Overrides(), "Q8_0"),
    ],
)
def test_the_embedding_that_is_the_output_too(tmp_path: Path, said: Overrides, expected: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    made = plan(tmp_path / "hf", "Q4_0", overrides=said)
    assert {info.name: info.format.name for info in made.infos}["token_embd.weight"] == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [((("(", "Q8_0"),), "no regular expression"), ((("x", "Q9"),), "'Q9' is not written"), ((("q", "Q4_K"),), "256")],
)
def test_overrides_that_cannot_be(tmp_path: Path, patterns: tuple[tuple[str, str], ...], message: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=message):
        plan(tmp_path / "hf", "Q4_0", overrides=Overrides(patterns))


def test_what_has_an_encoder_can_be_asked_for() -> None:
    assert set(WRITTEN) == {name for name in FORMATS if blocks.can_encode(name)}


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in WRITTEN])
def test_formats_that_are_only_run_are_refused_by_name(tmp_path: Path, name: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    message = f"{name!r} is not written; one of F32, .*IQ4_XS"
    for asked in ({"patterns": (("ffn", name),)}, {"embedding": name}, {"output": name}):
        with pytest.raises(CheckpointError, match=message):
            Overrides(**asked)
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", name)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_dry_run_prints_what_would_be_written_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    arguments = [str(tmp_path / "hf"), "--type", "q5_1", "--tensor-type", "ffn_up=q8_0"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert cli.main([*arguments[:1], str(tmp_path / "out.gguf"), *arguments[1:]]) == 0
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert len(lines) == len(file.tensors) + 1
        for line, tensor in zip(lines, file.tensors.values(), strict=False):
            name, *_, target, nbytes = line.split()
            assert (name, target) == (tensor.name, tensor.format.name)
            assert int(nbytes.replace(",", "")) == file.data(tensor).size
    assert "bits a weight" in lines[-1]


def test_a_quantized_source_must_be_wanted(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "small.gguf", "Q8_0")
    with pytest.raises(CheckpointError, match=r"Q8_0 already.*--requantize"):
        quantize(tmp_path / "small.gguf", tmp_path / "smaller.gguf", "Q4_0")
    assert not (tmp_path / "smaller.gguf").exists()
    quantize(tmp_path / "small.gguf", tmp_path / "smaller.gguf", "Q4_0", requantize=True)
    quantize(tmp_path / "small.gguf", tmp_path / "copy.gguf", "Q8_0")  # nothing is rounded again


def test_out_may_be_left_away_only_without_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    assert cli.main([str(tmp_path / "hf")]) == 2
    assert "OUT is missing" in capsys.readouterr().err


# ---- presets --------------------------------------------------------------------------------------------------------


def _no_bytes(start: int, stop: int) -> NDArray[np.uint8]:
    raise AssertionError("a plan reads no weights")


def tensors(layers: int, width: int, hidden: int, q: int, kv: int, vocabulary: int) -> list[SourceTensor]:
    sizes = {
        "layers": layers,
        "width": width,
        "hidden": hidden,
        "heads": q,
        "kv_heads": kv,
        "head_dim": 1,
        "tied": True,
        "architecture": "gemma3",
    }
    named = shapes(sizes) | {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    return [SourceTensor(name, name, shape, FORMATS["F32"], _no_bytes) for name, shape in named.items()]


MODELS = {
    "gemma3-270m": tensors(18, 640, 2048, 1024, 256, 262144),
    "gemma3-1b": tensors(26, 1152, 6912, 1024, 256, 262144),
    "gemma2-2b": tensors(26, 2304, 9216, 2048, 1024, 256000),
    "gemma3-4b": tensors(34, 2560, 10240, 2048, 1024, 262144),
    "tiny": tensors(2, 80, 144, 64, 32, 300),
}


SPARE = 10_000  # bytes: as many as the provenance takes


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_presets_fit_into_the_bytes_of_the_type_they_are_like(name: str, preset: str) -> None:
    model, facts = MODELS[name], Model(26, 2)
    chosen = presets.assign(preset, facts, model, Overrides(), tied=True, spare=SPARE)
    like = MIXES[presets.PRESETS[preset].like]
    standard = [choose(like, facts, t.name, t.shape, Overrides(), tied=True) for t in model]
    size, allowed = (
        sum(t.rows * f.row_bytes(t.columns) for t, f in zip(model, formats, strict=True))
        for formats in (chosen, standard)
    )
    assert 0.98 * allowed <= size <= allowed - SPARE or name == "tiny"
    assert size <= allowed
    assert presets.assign(preset, facts, model, Overrides(), tied=True, spare=SPARE) == chosen


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_the_file_of_a_preset_with_its_provenance_is_no_larger_than_one_without(preset: str) -> None:
    model = MODELS["gemma3-270m"]
    own = {"edge_gemma.version": string("0.0.0"), "edge_gemma.attention.scale": f32(1.0)}
    sizes = {"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1}
    config = ARCHITECTURES["gemma3"].from_hf(HfFields(sizes, {}, "config.json"))
    source = Source(config, own | {"general.name": string("x")}, model, [], [])
    made = make_plan(source, preset, Overrides(), None)
    like = make_plan(replace(source, metadata={}), presets.PRESETS[preset].like, Overrides(), None)
    provenance = Provenance([t.name for t in model], with_quality=True).metadata()
    assert made.nbytes + len(made.header(provenance)) <= like.nbytes + len(like.header({}))


def test_a_preset_keeps_what_the_user_says() -> None:
    model = MODELS["gemma3-270m"]
    said = Overrides((("attn_v", "Q8_0"),))
    chosen = presets.assign("EG4", Model(18, 4), model, said, tied=True, spare=0)
    named = dict(zip((t.name for t in model), chosen, strict=True))
    assert {f.name for name, f in named.items() if "attn_v" in name} == {"Q8_0"}
    assert named["output_norm.weight"].name == "F32"
    assert math.prod(f.block for f in chosen) > 0


@pytest.mark.parametrize("pattern", ["attn_w", "output_norm"])
def test_a_pattern_that_would_do_nothing_is_refused(tmp_path: Path, pattern: str) -> None:
    """A misspelt name, or that of a vector, which is F32 whatever is said."""
    tiny.write_checkpoint(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=f"tensor type {pattern}=Q8_0: no matrix of this model"):
        plan(tmp_path / "hf", overrides=Overrides(((pattern, "Q8_0"),)))
