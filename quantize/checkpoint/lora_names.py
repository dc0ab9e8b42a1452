"""Names of PEFT's tensors -> pairs of factors and the GGUF matrix each pair changes. Knows no numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edge_gemma.errors import CheckpointError
from edge_gemma.models.registry import ARCHITECTURES
from edge_gemma.models.tensor_table import OUTPUT

from .names import is_audio, is_vision, without_prefix
from .stored_tensor import StoredTensor

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
_LAYER = re.compile(r"layers\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<matrix>.+)")
_ROLES = {module: role for model in ARCHITECTURES.values() for module, role in model.matrices.items()}
_UNSUPPORTED = {
    "lora_magnitude_vector": "DoRA is not merged",
    "lora_embedding_": "the token embedding is also the output matrix, for which this adapter was not trained",
    "bias": "trained biases are not merged",
}


@dataclass(frozen=True)
class Pair:
    """Factors A (rank, columns) and B (rows, rank) for the GGUF tensor `target`, which PEFT calls `module`."""

    module: str
    target: str
    a: StoredTensor
    b: StoredTensor


def pair_up(tensors: Mapping[str, StoredTensor], where: str) -> tuple[list[Pair], int]:
    """Pairs in the order of the file, and how many tensors belong to a vision tower.

    Raises CheckpointError for a tensor that is half of no pair or of a matrix that is not merged: none is left unused.
    """
    modules: dict[str, dict[str, StoredTensor]] = {}
    vision = 0
    for name, tensor in tensors.items():
        module, factor = _parse(name, where)
        if is_vision(module) or is_audio(module):
            vision += 1
            continue
        factors = modules.setdefault(module, {})
        if factor in factors:
            raise CheckpointError(f"{where}: tensors {factors[factor].name!r} and {name!r} are the same factor")
        factors[factor] = tensor
    return _pairs(modules, where), vision


def _parse(name: str, where: str) -> tuple[str, str]:
    for part, reason in _UNSUPPORTED.items():
        if part in name:
            raise CheckpointError(f"{where}: tensor {name!r}: {reason}")
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(
            f"{where}: tensor {name!r} is no LoRA factor; whole modules (modules_to_save) are not merged"
        )
    return match["module"], match["factor"]


def _pairs(modules: dict[str, dict[str, StoredTensor]], where: str) -> list[Pair]:
    pairs: dict[str, Pair] = {}
    for module, factors in modules.items():
        if len(factors) != 2:
            (have,) = factors
            raise CheckpointError(f"{where}: module {module!r} has factor {have} only")
        target = _target(module, where)
        if target in pairs:
            raise CheckpointError(f"{where}: modules {pairs[target].module!r} and {module!r} are the same matrix")
        pairs[target] = Pair(module, target, factors["A"], factors["B"])
    return list(pairs.values())


def _target(module: str, where: str) -> str:
    short = without_prefix(module)
    if short == "lm_head":
        return OUTPUT
    match = _LAYER.fullmatch(short)
    if match is None or match["matrix"] not in _ROLES:
        raise CheckpointError(f"{where}: module {module!r} is no matrix that is merged")
    return f"blk.{match['layer']}.{_ROLES[match['matrix']]}.weight"
