"""config.json of transformers 4 and 5: which architecture it is of, and what the architecture does not ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.models.architecture import Config
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.registry import ARCHITECTURES

TEXT_CLASSES = {name: model for model in ARCHITECTURES.values() for name in model.hf_classes}
MULTIMODAL_CLASSES = {name: model for model in ARCHITECTURES.values() for name in model.hf_multimodal_classes}
CLASSES = TEXT_CLASSES | MULTIMODAL_CLASSES
QUANTIZATION = ("quantization_config", "quantization", "compression_config")


@dataclass(frozen=True)
class HfModel:
    """What a config.json says. tied: the embedding is the output matrix, too."""

    config: Config
    vocab_size_given: bool  # False: the default, which says little about the tokenizer
    tied: bool


def read_model(config: dict[str, Any], where: str = "config.json") -> HfModel:
    """What a parsed config.json says of a text model. Raises CheckpointError naming the key at fault."""
    name = _class(config, where)
    text = config
    if name in MULTIMODAL_CLASSES:
        text = config.get("text_config") or {}
        where += ": text_config"
    if not isinstance(text, dict):
        raise CheckpointError(f"{where} must be an object, got {text!r}")
    read = CLASSES[name].from_hf(HfFields(text, {}, where))
    return HfModel(read, text.get("vocab_size") is not None, _tied(config, text, where, CLASSES[name].hf_tied))


def is_encoder(config: dict[str, Any], where: str = "config.json") -> bool:
    """Whether a parsed config.json is of a model that makes embeddings. Raises CheckpointError."""
    return CLASSES[_class(config, where)].is_encoder


def quantization(config: dict[str, Any]) -> str:
    """How config.json says that the weights are quantized; empty if it does not. Mergers leave it in when they are not.

    `quantization` is the key of MLX.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = next((value for place in places for key in QUANTIZATION if (value := place.get(key))), None)
    method = found.get("quant_method") if isinstance(found, dict) else None
    return str(method) if method else "by a method that is not named" if found else ""


def _class(config: dict[str, Any], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(CLASSES):
        raise CheckpointError(f"{where}: architectures is {names!r}; one of {', '.join(CLASSES)} is converted")
    return str(names[0])


def _tied(config: dict[str, Any], text: dict[str, Any], where: str, default: bool) -> bool:
    given = [source.get("tie_word_embeddings") for source in (config, text)]
    tied = next((value for value in given if value is not None), default)
    if not isinstance(tied, bool):
        raise CheckpointError(f"{where}: tie_word_embeddings must be true or false, got {tied!r}")
    return tied
