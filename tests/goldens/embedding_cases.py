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
from tests.goldens import cases
from tests.goldens.cases import Case, Floats, draw

LENGTHS = (61, 2, 33, 3)


@dataclass(frozen=True)
class EmbeddingCase:
    """The layers of `body`, a Gemma 3; `width` is that of the window on both sides together, and of dense layers."""

    name: str
    body: Case
    window: int
    dense: int

    architecture = "gemma-embedding"

    @property
    def vocab(self) -> int:
        return self.body.vocab

    @property
    def seed(self) -> int:
        return self.body.seed


_BASES: dict[str, Any] = {"rope_base": 1e6, "rope_local_base": 1e4, "vocab": 320}
_BODIES = (
    (Case("embedding-300m", "gemma3", "LLLLLG", 96, 160, 3, 1, 64, 64, **_BASES), 12, 128),
    (Case("embedding-256", "gemma3", "LLG", 256, 512, 4, 1, 128, 128, **_BASES), 20, 512),
)
EMBEDDING_CASES = {body.name: EmbeddingCase(body.name, body, window, dense) for body, window, dense in _BODIES}


def texts(case: EmbeddingCase) -> list[list[int]]:
    """Between BOS and EOS."""
    return [[*cases.token_ids(case, length - 1), 1] for length in LENGTHS]


def weights(case: EmbeddingCase) -> dict[str, Floats]:
    """Every tensor under its Hugging Face name; the model of this class has no `model.` before them."""
    found = {name.removeprefix("model."): values for name, values in cases.weights(case.body).items()}
    return {name: values for name, values in found.items() if name != "lm_head.weight"}


def dense(case: EmbeddingCase) -> dict[str, Floats]:
    """The dense layers by GGUF's names, (outputs, inputs)."""
    D = case.body.width
    shapes = {"dense_2": (case.dense, D), "dense_3": (D, case.dense)}
    return {name: draw(case, name, shape, shape[1] ** -0.5) for name, shape in shapes.items()}


def config(case: EmbeddingCase) -> dict[str, Any]:
    """config.json. `sliding_window` is the whole width."""
    changes = {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True, "sliding_window": case.window}
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


def write_gguf(case: EmbeddingCase, path: Path, format: str = "F32", *, with_dense: bool = True) -> None:
    """With every matrix in `format`, norms in F32, and the keys that llama.cpp's converter writes."""
    writer, c = gguf.GGUFWriter(path, case.architecture), case.body
    _add_metadata(writer, case)
    add_tokenizer(writer, c.vocab)
    for name, values in weights(case).items():
        target = cases.gguf_name("gemma3", name if name.startswith("lm_head") else f"model.{name}")
        if values.ndim == 1:
            writer.add_tensor(target, values + np.float32(1))
        else:
            cases.add_matrix(writer, target, cases.encode(case, name, values, format), format, False)
    for name, values in dense(case).items() if with_dense else ():
        writer.add_uint32(f"{case.architecture}.{name}_feat_in", values.shape[1])
        writer.add_uint32(f"{case.architecture}.{name}_feat_out", values.shape[0])
        cases.add_matrix(writer, f"{name}.weight", cases.encode(case, name, values, format), format, False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, case: EmbeddingCase) -> None:
    c = case.body
    writer.add_type("model")
    writer.add_context_length(1024)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_sliding_window(case.window)
    writer.add_array("edge_gemma.attention.sliding_window_pattern", [kind == "L" for kind in c.local])
    writer.add_float32(f"{case.architecture}.rope.freq_base_swa", c.rope_local_base)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_quantization_version(2)
