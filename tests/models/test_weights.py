"""Tensors -> Weights: the exact set of names, shapes, types, and finite norms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.models.registry import ARCHITECTURES, read_config
from edge_gemma.models.tensor_table import TensorSpec
from edge_gemma.models.weights import Weights
from tests.gguf_builder import TYPE_F16, TYPE_F32, TYPE_Q4_0, TYPE_Q8_0, Builder, TensorRecord, tiny_gemma, u32


def bind(builder: Builder, folder: Path) -> Weights:
    path = folder / "model.gguf"
    path.write_bytes(builder.build())
    with GgufFile.open(path, strict=True) as file:
        return Weights.bind(file, read_config(file))


def refused(builder: Builder, folder: Path) -> ModelFormatError:
    with pytest.raises(ModelFormatError) as caught:
        bind(builder, folder)
    assert caught.value.path == str(folder / "model.gguf")
    return caught.value


def replaced(builder: Builder, name: str, **changes: object) -> Builder:
    for field, value in changes.items():
        setattr(builder.tensor(name), field, value)
    return builder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_finds_its_place(tmp_path: Path, architecture: str) -> None:
    builder = tiny_gemma(architecture)
    weights = bind(builder, tmp_path)
    names = {str(tensor.name) for tensor in builder.tensors}
    assert (weights.output is weights.token_embd) == ("output.weight" not in names)
    assert len(weights.layers) == 4
    for index, layer in enumerate(weights.layers):
        names = [str(t.name) for t in builder.tensors if str(t.name).startswith(f"blk.{index}.")]
        for role in (name.split(".")[2] for name in names):
            tensor = getattr(layer, role)
            assert tensor is layer.get(role)
            assert tensor.name == f"blk.{index}.{role}.weight"
            assert tensor.shape == builder.tensor(tensor.name).dims[::-1]
        assert layer.get("attn_qkv") is None
        with pytest.raises(AttributeError, match="no tensor attn_qkv here"):
            _ = layer.attn_qkv
    assert sorted(t.name for t in weights.tensors()) == sorted(str(t.name) for t in builder.tensors)


def test_tensors_of_no_layer(tmp_path: Path) -> None:
    weights = bind(tiny_gemma("gemma3"), tmp_path)
    assert weights.outside.token_embd is weights.token_embd and weights.outside.get("output") is None
    assert weights.rope_factors is None


def test_untied_output(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma3")
    builder.tensors.append(TensorRecord("output.weight", (64, 48), TYPE_Q8_0))
    weights = bind(builder, tmp_path)
    assert weights.output.name == "output.weight"
    assert sum(t.name == "output.weight" for t in weights.tensors()) == 1
    assert refused(replaced(builder, "output.weight", dims=(64, 47)), tmp_path).field == "output.weight"


def test_every_missing_tensor_is_noticed(tmp_path: Path) -> None:
    names = [str(t.name) for t in tiny_gemma("gemma3", n_layers=1).tensors]
    for name in names:
        builder = tiny_gemma("gemma3", n_layers=1)
        builder.tensors = [t for t in builder.tensors if t.name != name]
        error = refused(builder, tmp_path)
        assert (error.field, error.offset) == (name, None)


def test_missing_tensors_are_listed_up_to_five(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2", n_layers=2)
    builder.tensors = builder.tensors[:2]
    message = str(refused(builder, tmp_path))
    assert message.count("blk.0.") == 6  # the field, and five of the list
    assert "and 17 more" in message


# What llama.cpp's names call parts of a text model. To leave one out would be to compute another model.
FOREIGN_PARTS = [
    "blk.4.attn_norm.weight",
    "blk.0.attn_q.bias",
    "output.bias",
    "rope_freqs.weight",
    "token_types.weight",
]


@pytest.mark.parametrize("name", FOREIGN_PARTS)
def test_parts_of_another_text_model_are_refused(tmp_path: Path, name: str) -> None:
    builder = tiny_gemma("gemma2")
    builder.tensors.append(TensorRecord(name, (64,)))
    error = refused(builder, tmp_path)
    assert error.field == name and f"gemma2 has no such tensors: {name}" in str(error)
    assert error.offset is not None


def test_parts_of_another_text_model_are_listed(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2")
    builder.tensors += [TensorRecord(name, (64,)) for name in reversed(FOREIGN_PARTS)]
    assert ", ".join(sorted(FOREIGN_PARTS)) in str(refused(builder, tmp_path))


@pytest.mark.parametrize("name", ["extra.weight", "steering direction", "a\nb", b"\xff.weight"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_that_nobody_knows_are_ignored(tmp_path: Path, architecture: str, name: str | bytes) -> None:
    """Also of a type that is not executed, of no elements, of any rank."""
    builder = tiny_gemma(architecture)
    expected = {t.name for t in bind(builder, tmp_path).tensors()}
    shown = {"a\nb": r"a\nb", b"\xff.weight": r"\udcff.weight"}.get(name, name)
    for type_id, dims, nbytes in ((TYPE_F32, (3,), 12), (35, (256, 2), 132), (TYPE_F16, (), 2), (TYPE_F32, (0,), 0)):
        extra = TensorRecord(name, dims, type_id, bytes(nbytes))
        builder.tensors.insert(5, extra)
        with pytest.warns(UserWarning, match=f"tensors that {architecture} does not have are ignored") as caught:
            assert {t.name for t in bind(builder, tmp_path).tensors()} == expected
        assert str(shown) in str(caught[0].message) and str(caught[0].message).isprintable()
        builder.tensors.remove(extra)


def test_block_count_must_match_the_tensors(tmp_path: Path) -> None:
    assert "no such tensors" in str(refused(tiny_gemma("gemma2").set("gemma2.block_count", u32(3)), tmp_path))
    assert "missing tensors" in str(refused(tiny_gemma("gemma2").set("gemma2.block_count", u32(5)), tmp_path))


def test_fused_attention(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2", n_layers=1)
    builder.tensors.append(TensorRecord("blk.0.attn_qkv.weight", (64, 128), TYPE_F16))
    error = refused(builder, tmp_path)
    assert error.field == "blk.0.attn_qkv.weight"
    assert "not supported" in str(error)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_towers_for_images_and_sound_are_ignored_silently(tmp_path: Path, architecture: str) -> None:
    builder = tiny_gemma(architecture)
    expected = {t.name for t in bind(builder, tmp_path).tensors()}
    builder.tensors += [
        TensorRecord("v.patch_embedding.weight", (14, 14, 3, 8), TYPE_F16),
        TensorRecord("mm.norm", (3,)),
        TensorRecord("a.blk.0.weight", (256,), 35, bytes(66)),
    ]
    assert {t.name for t in bind(builder, tmp_path).tensors()} == expected


def test_a_type_that_is_not_executed(tmp_path: Path) -> None:
    sizes = {"d_model": 256, "n_heads": 4, "head_dim": 64}
    builder = replaced(tiny_gemma("gemma2", **sizes), "blk.1.ffn_up.weight", type_id=35, data=bytes(96 * 66))
    error = refused(builder, tmp_path)
    assert error.field == "blk.1.ffn_up.weight" and error.offset is not None
    assert "type TQ2_0 is known but not executed" in str(error) and "edge-gemma quantize" in str(error)


@pytest.mark.parametrize("name", [str(t.name) for t in tiny_gemma("gemma3", n_layers=1).tensors])
def test_every_shape_is_checked(tmp_path: Path, name: str) -> None:
    builder = tiny_gemma("gemma3", n_layers=1)
    dims = builder.tensor(name).dims
    wrong = {(*dims[:-1], dims[-1] - 1), (*dims[:-1], dims[-1] + 1), (dims[0] * 2, *dims[1:]), (*dims, 1)} - {dims}
    if dims != dims[::-1]:
        wrong.add(dims[::-1])
    for other in wrong:
        error = refused(replaced(tiny_gemma("gemma3", n_layers=1), name, dims=other, data=None), tmp_path)
        assert error.field == name
        assert f"has shape {other[::-1]}, the metadata asks for {dims[::-1]}" in str(error)


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_norm.weight", "blk.3.attn_k_norm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_norms_are_finite(tmp_path: Path, name: str, value: float) -> None:
    builder = tiny_gemma("gemma3")
    data = np.ones(builder.tensor(name).dims, "<f4")
    for position in (0, 7, len(data) - 1):
        broken = data.copy()
        broken[position] = value
        error = refused(replaced(builder, name, data=broken.tobytes()), tmp_path)
        assert error.field == name
        assert f"entry {position} is not finite" in str(error)


def test_norms_are_f32(tmp_path: Path) -> None:
    error = refused(replaced(tiny_gemma(), "output_norm.weight", type_id=TYPE_F16, data=bytes(128)), tmp_path)
    assert error.field == "output_norm.weight"
    assert "must be F32, this is F16" in str(error)


def test_matrices_may_have_any_executed_type(tmp_path: Path) -> None:
    builder = tiny_gemma()
    for type_id in (TYPE_F32, TYPE_F16, TYPE_Q8_0):
        weights = bind(replaced(builder, "blk.1.ffn_up.weight", type_id=type_id), tmp_path)
        up = weights.layers[1].ffn_up
        assert up.format.type_id == type_id


def test_least_rows(tmp_path: Path) -> None:
    """Of quantized matrices; others have none."""
    sizes = {"token_embd.weight": {"vocab": 15}, "blk.0.attn_k.weight": {"n_heads": 8, "n_kv_heads": 1, "head_dim": 8}}
    for name, few in sizes.items():
        bind(tiny_gemma("gemma2", **few), tmp_path)
        error = refused(replaced(tiny_gemma("gemma2", **few), name, type_id=TYPE_Q8_0), tmp_path)
        assert error.field == name and "rows must be at least 16" in str(error)
    bind(replaced(tiny_gemma("gemma2", vocab=16), "token_embd.weight", type_id=TYPE_Q8_0), tmp_path)


def test_column_step(tmp_path: Path) -> None:
    """Attention's output takes heads x head_dim columns, which no key of its own bounds."""
    error = refused(tiny_gemma("gemma2", n_heads=1, n_kv_heads=1), tmp_path)
    assert error.field == "blk.0.attn_output.weight"
    assert "columns a multiple of 32" in str(error)


def test_alignment_below_the_kernels(tmp_path: Path) -> None:
    builder = tiny_gemma("gemma2", vocab=17).set("general.alignment", u32(8))
    builder.alignment = 8
    builder.tensors.insert(0, builder.tensors.pop(2))
    builder.tensors[0].data = None
    replaced(builder, "token_embd.weight", type_id=TYPE_Q8_0)
    error = refused(builder, tmp_path)
    assert "not aligned to 32 bytes" in str(error)


def test_real_model(real_model: Path) -> None:
    with GgufFile.open(real_model) as file:
        weights = Weights.bind(file, read_config(file))
    assert weights.output is weights.token_embd
    assert weights.token_embd.shape == (262144, 640)
    assert weights.layers[17].ffn_down.format.name in ("Q4_K", "Q6_K")
    assert sum(1 for _ in weights.tensors()) == 236


# ---- tensors of several matrices -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneTensor:
    """A model of an embedding, a norm, and a tensor of this shape."""

    shape: tuple[int, ...]
    architecture: str = "x"
    layers: tuple[object, ...] = ()

    def tensors(self) -> list[TensorSpec]:
        usual = [TensorSpec("token_embd", (16, 32), ""), TensorSpec("output_norm", (32,), "")]
        return [*usual, TensorSpec("tensor", self.shape, "")]

    def unused_tensors(self) -> list[TensorSpec]:
        return []


def bind_one(model: OneTensor, folder: Path, type_id: int = TYPE_Q4_0) -> Weights:
    builder = Builder()
    builder.tensors = [TensorRecord("token_embd.weight", (32, 16)), TensorRecord("output_norm.weight", (32,))]
    builder.tensors.append(TensorRecord("tensor.weight", model.shape[::-1], type_id))
    (folder / "model.gguf").write_bytes(builder.build())
    with GgufFile.open(folder / "model.gguf") as file:
        return Weights.bind(file, model)


@pytest.mark.parametrize("shape", [(3, 16, 32), (1, 48, 64), (8, 32, 96)])
def test_each_matrix_of_several_is_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert bind_one(OneTensor(shape), tmp_path).outside.tensor.shape == shape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 32), "8 x 32: rows must be at least 16"),
        ((3, 17, 32), "its matrices of 306 bytes are not aligned to 32"),
    ],
)
def test_matrices_that_no_kernel_reads_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        bind_one(OneTensor(shape), tmp_path)


def test_a_float_matrix_may_have_few_rows(tmp_path: Path) -> None:
    assert bind_one(OneTensor((8, 32)), tmp_path, TYPE_F32).outside.tensor.shape == (8, 32)
    with pytest.raises(ModelFormatError, match="rows must be at least 16"):
        bind_one(OneTensor((8, 32)), tmp_path)
