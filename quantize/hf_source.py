"""A Hugging Face folder as a source: config, tokenizer and tensors brought together and checked against each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize.checkpoint import CheckpointFolder
from edge_gemma.quantize.general import general_metadata
from edge_gemma.quantize.hf_config import Hyperparameters, read_hyperparameters
from edge_gemma.quantize.metadata import (
    Metadata,
    explicit_metadata,
    model_metadata,
    tokenizer_metadata,
    usual_pattern,
)
from edge_gemma.quantize.names import EMBEDDING, HF_OUTPUT, OUTPUT, Target, targets, text_names
from edge_gemma.quantize.source import Source, SourceTensor
from edge_gemma.quantize.special_tokens import read_special_tokens
from edge_gemma.quantize.stored_tensor import StoredTensor
from edge_gemma.quantize.vocab import Vocabulary, read_vocabulary


def open_folder(path: Path) -> Source:
    """The checkpoint in folder `path`. Raises CheckpointError naming the file, tensor or key at fault."""
    folder = CheckpointFolder(path)
    config = folder.json("config.json")
    if config is None:
        raise CheckpointError(f"{folder.path}: no config.json")
    model = read_hyperparameters(config, str(folder.path / "config.json"))
    notices = _compatibility(model)
    stored = _text_tensors(folder, model, notices)
    vocabulary = read_vocabulary(folder, model.vocab_size if model.vocab_size_given else None)
    tensors = _place(stored, model, _rows_to_keep(model, vocabulary, folder.path), folder.path)
    special = read_special_tokens(folder, vocabulary, config)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    metadata = (
        general_metadata(folder, model.architecture, config, parameters)
        | model_metadata(model)
        | _explicit(model)
        | tokenizer_metadata(vocabulary, special, model.architecture)
    )
    files = [entry for entry in folder.path.iterdir() if entry.is_file()]
    return Source(metadata, tensors, files, notices + vocabulary.notices)


def _text_tensors(folder: CheckpointFolder, model: Hyperparameters, notices: list[str]) -> dict[str, StoredTensor]:
    """The language model's tensors by their names without prefix."""
    stored = folder.tensors()
    try:
        names, vision = text_names(list(stored), model)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.path}: {error}") from None
    if vision:
        notices.append(f"vision tower left out: {vision} tensors")
    if model.tied and HF_OUTPUT in names:
        del names[HF_OUTPUT]  # a copy of the embedding that some tools save
    return {short: stored[name] for short, name in names.items()}


def _place(
    stored: dict[str, StoredTensor], model: Hyperparameters, vocab_rows: int, folder: Path
) -> list[SourceTensor]:
    table = targets(model)
    if missing := [name for name in table if name not in stored]:
        text = f"{len(missing)} tensors are missing that config.json asks for: {', '.join(missing[:5])}"
        raise CheckpointError(f"{folder}: {text}")
    if extra := [tensor.where for name, tensor in stored.items() if name not in table]:
        raise CheckpointError(f"{len(extra)} tensors are extra, config.json has no place for {', '.join(extra[:5])}")
    tensors = [_tensor(stored[name], target) for name, target in table.items()]
    return [
        replace(tensor, shape=(vocab_rows, tensor.columns)) if tensor.name in (EMBEDDING, OUTPUT) else tensor
        for tensor in tensors
    ]


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
    if not model.tied and model.architecture != "gemma3":
        notices.append(f"output matrix of its own: llama.cpp does not load that for {model.architecture}")
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
