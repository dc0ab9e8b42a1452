"""A Hugging Face folder as a source: config, tokenizer and tensors brought together and checked against each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.gguf.values import Metadata

from .folder import CheckpointFolder
from .general import general_metadata
from .hf_config import Hyperparameters, quantization, read_hyperparameters
from .meant import no_checkpoint
from .metadata import explicit_metadata, model_metadata, tokenizer_metadata, usual_pattern
from .names import (
    EMBEDDING,
    HF_OUTPUT,
    OUTPUT,
    Target,
    is_adapted,
    is_output,
    is_unread,
    is_value_head,
    is_vision,
    short_names,
    targets,
)
from .own_output import own_output_notices, settle_output
from .source import Source, SourceTensor
from .special_tokens import read_special_tokens
from .stored_tensor import StoredTensor
from .vocabulary import Vocabulary, read_vocabulary

SHOWN = 5  # names of tensors


def open_folder(path: Path) -> Source:
    """The checkpoint in folder `path`. Raises CheckpointError naming the file, tensor or key at fault."""
    folder = CheckpointFolder(path)
    config = folder.json("config.json")
    if config is None:
        raise no_checkpoint(folder.path)
    model = read_hyperparameters(config, str(folder.path / "config.json"))
    with _quantized_if_so(folder, config):
        stored = _text_tensors(folder)
    vocabulary = read_vocabulary(folder, model.vocab_size if model.vocab_size_given else None)
    rows = _rows_to_keep(model, vocabulary, folder.path)
    stored, model, notices = settle_output(stored, model, rows)
    with _quantized_if_so(folder, config):
        tensors = _place(stored, model, rows, folder.path)
    special = read_special_tokens(folder, vocabulary, config)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    metadata = (
        general_metadata(folder, model.architecture, config, parameters)
        | model_metadata(model)
        | _explicit(model)
        | tokenizer_metadata(vocabulary, special, model.architecture)
    )
    files = [entry for entry in folder.path.iterdir() if entry.is_file()]
    if quantization(config):
        notices.append("quantization_config in config.json ignored: the weights are not quantized")
    notices = [*_left_out(folder.left_out), *folder.notices, *notices, *_compatibility(model), *vocabulary.notices]
    return Source(metadata, tensors, files, notices)


@contextmanager
def _quantized_if_so(folder: CheckpointFolder, config: dict[str, Any]) -> Iterator[None]:
    """Weights that cannot be read are quantized ones, where config.json says so."""
    try:
        yield
    except CheckpointError as error:
        if not (method := quantization(config)):
            raise
        text = f"the weights are quantized ({method}), which is not read; give the checkpoint they were made of"
        raise CheckpointError(f"{folder.path / 'config.json'}: quantization_config: {text}; {error}") from None


def _text_tensors(folder: CheckpointFolder) -> dict[str, StoredTensor]:
    """The language model's tensors by their names without prefix. Raises CheckpointError."""
    stored = folder.tensors(is_unread, is_output)
    if adapted := [name for name in stored if is_adapted(name)]:
        text = f"an adapter that is not merged ({adapted[0]!r})"
        hint = "merge it with PEFT's merge_and_unload() and save that, or give the base model with --lora"
        raise CheckpointError(f"{folder.path}: the weights hold {text}; {hint}")
    try:
        names = short_names(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}: {error}") from None
    return {short: stored[name] for short, name in names.items()}


def _left_out(names: Collection[str]) -> list[str]:
    """What to tell of tensors that were not read."""
    vision, heads = (sum(map(test, names)) for test in (is_vision, is_value_head))
    notices = [f"vision tower left out: {vision} tensors"] if vision else []
    return notices + ([f"value head left out: {heads} tensors"] if heads else [])


def _place(
    stored: dict[str, StoredTensor], model: Hyperparameters, vocab_rows: int, folder: Path
) -> list[SourceTensor]:
    table = targets(model)
    if missing := [name for name in table if name not in stored]:
        raise CheckpointError(f"{folder}: {_missing(missing, stored)}")
    if extra := [tensor.where for name, tensor in stored.items() if name not in table]:
        text = f"{len(extra)} tensors are extra, config.json has no place for {', '.join(extra[:SHOWN])}"
        raise CheckpointError(f"{text}; is it the config.json of this model, and the model a Gemma?")
    tensors = [_tensor(stored[name], target) for name, target in table.items()]
    return [
        replace(tensor, shape=(vocab_rows, tensor.columns)) if tensor.name in (EMBEDDING, OUTPUT) else tensor
        for tensor in tensors
    ]


def _missing(missing: list[str], stored: dict[str, StoredTensor]) -> str:
    """What is missing, and what is there instead."""
    text = f"{len(missing)} tensors are missing that config.json asks for: {', '.join(missing[:SHOWN])}"
    if missing == [HF_OUTPUT]:
        return f"{text}; if the embedding is the output, too, write tie_word_embeddings: true into config.json"
    there = ", ".join(tensor.name for tensor in list(stored.values())[:SHOWN])
    return f"{text}; the weights hold {len(stored)}: {there}"


def _tensor(stored: StoredTensor, target: Target) -> SourceTensor:
    if stored.shape != target.shape:
        raise CheckpointError(f"{stored.where} has shape {stored.shape}; config.json asks for {target.shape}")
    return SourceTensor(target.name, stored.where, target.shape, stored.format, stored.raw_rows, target.shift)


def _rows_to_keep(model: Hyperparameters, vocabulary: Vocabulary, folder: Path) -> int:
    """Rows of the embedding that have a token; Gemma 3's multimodal tables have more than the tokenizer."""
    tokens = len(vocabulary.tokens)
    if tokens > model.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has {tokens} tokens, the embedding {model.vocab_size} rows")
    if tokens < model.vocab_size:
        cut = model.vocab_size - tokens
        vocabulary.notices.append(f"{cut} rows of the embedding without a token cut off ({tokens} kept)")
    return tokens


def _compatibility(model: Hyperparameters) -> list[str]:
    """What llama.cpp, which guesses scale and output from the architecture and the layer count, would do otherwise."""
    notices = []
    usual = model.head_dim**-0.5
    if (model.architecture, model.layers) in (("gemma2", 46), ("gemma3", 62)):  # the 27B models
        usual = (model.hidden_size / model.heads) ** -0.5
    if not math.isclose(model.attention_scale, usual, rel_tol=1e-6):
        notices.append(f"attention scale {model.attention_scale:.6g}: llama.cpp will use {usual:.6g} instead")
    if not model.tied:
        notices += own_output_notices(model.architecture)
    if model.architecture != "gemma" and model.local_layers != usual_pattern(model.architecture, model.layers):
        notices.append("unusual pattern of local layers: old versions of llama.cpp do not read it")
    return notices


def _explicit(model: Hyperparameters) -> Metadata:
    return explicit_metadata(
        scale=model.attention_scale,
        local_layers=model.local_layers,
        rope_base=model.rope_base,
        rope_base_local=model.rope_base_local,
        rope_scale=model.rope_scale,
    )
