"""Small random EmbeddingGemma checkpoints: Gemma 3's weights of `cases.py`, a wider window, dense layers.

write_checkpoint(case, folder)                config.json, model.safetensors, modules of sentence-transformers
write_gguf(case, path, format="F32")          the same model as GGUF, with its dense layers or without
texts(case)                                   token ids of some texts, over more than two windows
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from bench.synthetic import add_tokenizer
from tests.goldens import cases, gemma4_cases
from tests.goldens.cases import Case, Floats, draw
from tests.goldens.gemma4_cases import Gemma4Case

LENGTHS = (61, 2, 33, 3)


@dataclass(frozen=True)
class EmbeddingCase:
    """Layers of `body`, a Gemma 3, whose window is that on both sides together; `dense`: width between dense layers."""

    body: Case
    dense: int

    architecture = "gemma-embedding"

    @property
    def name(self) -> str:
        return self.body.name

    @property
    def vocab(self) -> int:
        return self.body.vocab

    @property
    def seed(self) -> int:
        return self.body.seed


_BASES: dict[str, Any] = {"rope_base": 1e6, "rope_local_base": 1e4, "vocab": 320}
_CASES = (
    EmbeddingCase(Case("embedding-300m", "gemma3", "LLLLLG", 96, 160, 3, 1, 64, 64, window=12, **_BASES), 128),
    EmbeddingCase(Case("embedding-256", "gemma3", "LLG", 256, 512, 4, 1, 128, 128, window=20, **_BASES), 512),
)
EMBEDDING_CASES = {case.name: case for case in _CASES}


def texts(case: EmbeddingCase) -> list[list[int]]:
    """Between BOS and EOS."""
    return [[*cases.token_ids(case, length - 1), 1] for length in LENGTHS]


def weights(case: EmbeddingCase) -> dict[str, Floats]:
    """Every tensor under its Hugging Face name; the model of this class has no `model.` before them."""
    return {name.removeprefix("model."): values for name, values in cases.weights(case.body).items()}


def dense(case: EmbeddingCase) -> dict[str, Floats]:
    """The dense layers by GGUF's names, (outputs, inputs)."""
    D = case.body.width
    shapes = {"dense_2": (case.dense, D), "dense_3": (D, case.dense)}
    return {name: draw(case, name, shape, shape[1] ** -0.5) for name, shape in shapes.items()}


def config(case: EmbeddingCase) -> dict[str, Any]:
    """config.json."""
    changes = {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}
    return cases.config(case.body) | changes


def write_checkpoint(case: EmbeddingCase, folder: Path) -> None:
    """As sentence-transformers lays it out: the model, the pooling, two dense layers, the normalization."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "config.json", config(case))
    _write_json(folder / "tokenizer.json", cases.tokenizer_json(case.vocab))
    _write_json(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": case.body.width, "pooling_mode_mean_tokens": True},
    )
    save_file(weights(case), folder / "model.safetensors", metadata={"format": "pt"})
    for path, values in zip(("2_Dense", "3_Dense"), dense(case).values(), strict=True):
        outputs, inputs = values.shape
        layer = {"in_features": inputs, "out_features": outputs, "bias": False}
        _write_json(folder / path / "config.json", layer | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file({"linear.weight": values}, folder / path / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


# ---- the second version: Gemma 4's layers ------------------------------------------------------------------------

EMBEDDING2 = Gemma4Case(
    "embedding2", "LLGLLG", 64, 128, 4, 2, 1, 32, 64, window=12, per_layer=32, turning=1.0, final_cap=None, seed=3
)
WIDTH2 = 96
"""Of its embeddings."""


def texts2() -> list[list[int]]:
    """Between BOS and EOS."""
    return [[*cases.token_ids(EMBEDDING2, length - 1), 1] for length in LENGTHS]


def weights2() -> dict[str, Floats]:
    """As Gemma 4's checkpoint; the table of per-layer inputs is none."""
    found = gemma4_cases.weights(EMBEDDING2)
    return {name: values for name, values in found.items() if "embed_tokens_per_layer" not in name}


def projection2() -> Floats:
    """The dense layer, (outputs, inputs)."""
    return draw(EMBEDDING2, "embedding_projection", (WIDTH2, EMBEDDING2.width), EMBEDDING2.width**-0.5)


def write_gguf2(path: Path, *, width: int | None = WIDTH2) -> None:
    """In F32. width: what the file says of its embeddings; None: nothing."""
    writer = gguf.GGUFWriter(path, "gemma-embedding2")
    gemma4_cases.add_metadata(writer, EMBEDDING2)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    if width is not None:
        writer.add_uint32(f"{writer.arch}.embedding_length_out", width)
    add_tokenizer(writer, EMBEDDING2.vocab)
    for name, values in weights2().items():
        writer.add_tensor(gemma4_cases.gguf_name(name), values)
    writer.add_tensor("output.weight", projection2())
    cases.finish(writer)


# ---- files of the first --------------------------------------------------------------------------------------------


def write_gguf(case: EmbeddingCase, path: Path, format: str = "F32", *, with_dense: bool = True) -> None:
    """With every matrix in `format`, norms in F32, and the keys that llama.cpp's converter writes."""
    writer, c = gguf.GGUFWriter(path, case.architecture), case.body
    cases.add_metadata(writer, c)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    add_tokenizer(writer, c.vocab)
    for name, values in weights(case).items():
        target = cases.gguf_name("gemma3", f"model.{name}")
        if values.ndim == 1:
            writer.add_tensor(target, values + np.float32(1))
        else:
            cases.add_matrix(writer, target, cases.encode(case, name, values, format), format, False)
    for name, values in dense(case).items() if with_dense else ():
        writer.add_uint32(f"{case.architecture}.{name}_feat_in", values.shape[1])
        writer.add_uint32(f"{case.architecture}.{name}_feat_out", values.shape[0])
        cases.add_matrix(writer, f"{name}.weight", cases.encode(case, name, values, format), format, False)
    cases.finish(writer)
