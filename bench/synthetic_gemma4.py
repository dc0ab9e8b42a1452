"""GGUF files of the exact shapes of Gemma 4, filled as those of `synthetic.py` are.

Tensors and keys are those of our converter for the published config.json of each size. Of the 26B there is one with
fewer layers: each costs a token as many bytes as in the whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.synthetic import Tensor, finish, with_formats
from edge_gemma.gguf.values import Value
from edge_gemma.models.architecture import Config
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.registry import ARCHITECTURES
from edge_gemma.quantize.recipe import Model

KV = "num_key_value_heads"
COMMON = {"final_logit_softcapping": 30.0}


def _layers(count: int, period: int) -> dict[str, Any]:
    kinds = ["full_attention" if i % period == period - 1 else "sliding_attention" for i in range(count)]
    return {"num_hidden_layers": count, "layer_types": kinds}


def _sizes(d_model: int, d_ff: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": d_model, "intermediate_size": d_ff, "num_attention_heads": heads, KV: kv_heads} | more


def _large(global_kv_heads: int) -> dict[str, Any]:
    """Without inputs of layers; global layers have keys for values."""
    own = {"attention_k_eq_v": True, "num_global_key_value_heads": global_kv_heads, "hidden_size_per_layer_input": 0}
    return own | {"sliding_window": 1024, "max_position_embeddings": 262_144}


_EXPERTS = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
_26B = _sizes(2816, 2112, 16, 8) | _large(2) | _EXPERTS
SHAPES: dict[str, dict[str, Any]] = {
    "gemma4-e2b": _layers(35, 5) | _sizes(1536, 6144, 8, 1, num_kv_shared_layers=20, use_double_wide_mlp=True),
    "gemma4-e4b": _layers(42, 6) | _sizes(2560, 10240, 8, 2, num_kv_shared_layers=18),
    "gemma4-12b": _layers(48, 6) | _sizes(3840, 15360, 16, 8) | _large(1),
    "gemma4-26b-a4b": _layers(30, 6) | _26B,
    "gemma4-26b-6-layers": _layers(6, 6) | _26B,
    "gemma4-31b": _layers(60, 6) | _sizes(5376, 21504, 32, 16) | _large(4),
}
"""The part of each config.json that differs from the defaults."""


def config(shape: dict[str, Any]) -> Config:
    """What such a config.json says."""
    return ARCHITECTURES["gemma4"].from_hf(HfFields(COMMON | shape, {}, "config.json"))


def plan(config: Config, mix: str) -> list[Tensor]:
    """Every tensor of a file, in file order, with the format that `mix` gives it."""
    specs = [spec for spec in config.tensors() if spec.role != "output"]
    model = Model(
        len(config.layers),
        config.n_heads // config.layers[0].n_kv_heads,
        architecture=config.architecture,
        experts=config.experts.count if config.experts else 0,
        values=tuple(spec.layer for spec in specs if spec.role == "attn_v" and spec.layer is not None),
    )
    return with_formats([(spec.name, spec.shape) for spec in specs], mix, model)


def write(path: Path, shape: dict[str, Any], mix: str) -> None:
    """Write a model of `shape` to `path`, replacing it; the bytes depend only on the arguments."""
    model, writer = config(shape), gguf.GGUFWriter(path, "gemma4")
    for key, value in model.model.metadata(model).items():
        _add(writer, key, value)
    given = {spec.name: spec.values for spec in model.tensors() if spec.values}
    finish(writer, mix, model.vocab_size, plan(model, mix), given)


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kind, _, element = value.kind.rstrip("]").partition("[")
    plain = value.value.tolist() if isinstance(value.value, np.ndarray) else value.value
    types = gguf.GGUFValueType
    writer.add_key_value(key, plain, types[kind], types[element] if element else None)
