"""A Hugging Face folder as a source: config, tokenizer and tensors brought together and checked against each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_gemma.errors import CheckpointError
from edge_gemma.formats import FORMATS
from edge_gemma.models.architecture import Config
from edge_gemma.models.embedding import DENSE
from edge_gemma.models.tensor_table import HF_OUTPUT, OUTPUT, TABLES, TensorSpec

from .folder import CheckpointFolder
from .general import count_parameters, general_metadata
from .head_order import Read, in_pairs, vector_in_pairs
from .hf_config import HfModel, is_encoder, quantization, read_model
from .meant import no_checkpoint
from .metadata import tokenizer_metadata
from .names import is_adapted, is_audio, is_output, is_unread, is_value_head, is_vision, short_names
from .own_output import own_output_notices, settle_output
from .sentence_transformers import NO_MODULES, read_modules
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
    where = str(folder.path / "config.json")
    modules = read_modules(folder) if is_encoder(config, where) else NO_MODULES
    model = read_model(config | {DENSE: modules.shapes}, where)
    with _quantized_if_so(folder, config):
        stored = _text_tensors(folder) | modules.tensors
    size = model.config.vocab_size if model.vocab_size_given else None
    vocabulary = read_vocabulary(folder, size, model.config.architecture)
    rows = _rows_to_keep(model.config, vocabulary, folder.path)
    stored, model, notices = settle_output(stored, model, rows)
    with _quantized_if_so(folder, config):
        tensors = _place(stored, model, rows, folder.path)
    _check_biases(config, tensors, folder.path)
    notices += _unused(stored, model.config)
    architecture = model.config.model
    special = read_special_tokens(folder, vocabulary, config, model.config.architecture)
    metadata = (
        general_metadata(folder, model.config.architecture, config, count_parameters(tensors))
        | architecture.metadata(model.config)
        | tokenizer_metadata(vocabulary, special, architecture.control_ids)
    )
    files = [entry for entry in folder.path.iterdir() if entry.is_file()] + modules.files
    if quantization(config):
        notices.append("quantization_config in config.json ignored: the weights are not quantized")
    if model.config.embedding is not None and not model.config.embedding.dense:
        notices.append("no dense layers behind the pooling: embeddings will not be those of the published model")
    notices = [*_left_out(folder.left_out), *folder.notices, *notices, *_compatibility(model), *vocabulary.notices]
    return Source(replace(model.config, vocab_size=rows), metadata, tensors, files, notices)


def _check_biases(config: dict[str, Any], tensors: list[SourceTensor], folder: Path) -> None:
    """No file but config.json says that there are any."""
    if config.get("attention_bias") and not any(tensor.name.endswith(".bias") for tensor in tensors):
        where = folder / "config.json"
        raise CheckpointError(f"{where}: attention_bias is true, but the weights hold none; is the download complete?")


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
    parts = {"vision tower": is_vision, "audio tower": is_audio, "value head": is_value_head}
    counts = {part: sum(map(test, names)) for part, test in parts.items()}
    return [f"{part} left out: {count} tensors" for part, count in counts.items() if count]


def _unused(stored: dict[str, StoredTensor], config: Config) -> list[str]:
    """What to tell of tensors that nothing is computed with."""
    count = sum(spec.hf_name in stored for spec in config.unused_tensors())
    return [f"keys and values of layers that use those of others left out: {count} tensors"] if count else []


def _place(stored: dict[str, StoredTensor], model: HfModel, vocab_rows: int, folder: Path) -> list[SourceTensor]:
    specs = [spec for spec in model.config.tensors() if not (model.tied and spec.name == OUTPUT)]
    demanded = [spec.hf_name for spec in specs if spec.hf_name and (spec.name == OUTPUT or not spec.optional)]
    if missing := [name for name in (*demanded, *_in_other_layers(specs, stored)) if name not in stored]:
        raise CheckpointError(f"{folder}: {_missing(missing, stored)}")
    known = {spec.hf_name for spec in [*specs, *model.config.unused_tensors()]}
    if extra := [tensor.where for name, tensor in stored.items() if name not in known]:
        text = f"{len(extra)} tensors are extra, config.json has no place for {', '.join(extra[:SHOWN])}"
        raise CheckpointError(f"{text}; is it the config.json of this model, and the model one that is converted?")
    tensors = [_made(spec.values, spec) for spec in specs if spec.values is not None]
    tensors += [_tensor(stored[spec.hf_name], spec) for spec in specs if spec.hf_name in stored]
    return [
        replace(tensor, shape=(vocab_rows, tensor.columns)) if tensor.name in (*TABLES, OUTPUT) else tensor
        for tensor in tensors
    ]


def _in_other_layers(specs: list[TensorSpec], stored: dict[str, StoredTensor]) -> list[str]:
    """Optional tensors of which a layer has one: so have all."""
    optional = [spec for spec in specs if spec.layer is not None and spec.optional]
    there = {spec.key for spec in optional if spec.hf_name in stored}
    return [spec.hf_name for spec in optional if spec.key in there]


def _missing(missing: list[str], stored: dict[str, StoredTensor]) -> str:
    """What is missing, and what is there instead."""
    text = f"{len(missing)} tensors are missing that config.json asks for: {', '.join(missing[:SHOWN])}"
    if missing == [HF_OUTPUT]:
        return f"{text}; if the embedding is the output, too, write tie_word_embeddings: true into config.json"
    there = ", ".join(tensor.name for tensor in list(stored.values())[:SHOWN])
    return f"{text}; the weights hold {len(stored)}: {there}"


def _tensor(stored: StoredTensor, spec: TensorSpec) -> SourceTensor:
    if stored.shape != spec.shape:
        raise CheckpointError(f"{stored.where} has shape {stored.shape}; config.json asks for {spec.shape}")
    return SourceTensor(spec.name, stored.where, spec.shape, stored.format, _in_order(stored, spec), spec.shift)


def _in_order(stored: StoredTensor, spec: TensorSpec) -> Read:
    """Reads the stored bytes of rows in the order that they have in a GGUF file."""
    if not spec.paired_heads:
        return stored.raw_rows
    head_dim = spec.shape[0] // spec.paired_heads
    if len(spec.shape) == 1:
        return vector_in_pairs(stored.raw_rows, head_dim, stored.format.nbytes)
    return in_pairs(stored.raw_rows, head_dim)


def _made(values: Sequence[float], spec: TensorSpec) -> SourceTensor:
    """A tensor that config.json has, as one row."""
    row = np.array([values], "<f4").view(np.uint8)
    return SourceTensor(spec.name, "config.json", spec.shape, FORMATS["F32"], lambda start, stop: row[start:stop])


def _rows_to_keep(config: Config, vocabulary: Vocabulary, folder: Path) -> int:
    """Rows of the embedding that have a token; Gemma 3's multimodal tables have more than the tokenizer."""
    tokens = len(vocabulary.tokens)
    if tokens > config.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer has {tokens} tokens, the embedding {config.vocab_size} rows")
    if tokens < config.vocab_size:
        cut = config.vocab_size - tokens
        vocabulary.notices.append(f"{cut} rows of the embedding without a token cut off ({tokens} kept)")
    return tokens


def _compatibility(model: HfModel) -> list[str]:
    """What llama.cpp, which guesses some facts from the architecture and the layer count, would do otherwise."""
    config, architecture = model.config, model.config.model
    if not architecture.in_llama_cpp:
        return [f"llama.cpp does not load {architecture.name}"]
    notices, guessed = [], architecture.guessed(config)
    if not math.isclose(config.attn_scale, guessed.attn_scale, rel_tol=1e-6):
        notices.append(f"attention scale {config.attn_scale:.6g}: llama.cpp will use {guessed.attn_scale:.6g} instead")
    if not model.tied:
        notices += own_output_notices(architecture)
    if [layer.shared_with for layer in config.layers] != [layer.shared_with for layer in guessed.layers]:
        notices.append("keys and values are shared otherwise than llama.cpp takes for granted: it does not run that")
    if config.local_layers != guessed.local_layers and not any(guessed.local_layers):
        notices.append(f"attention has a window: llama.cpp has none for {architecture.name}, and attends to all")
    elif config.local_layers != guessed.local_layers:
        notices.append("unusual pattern of local layers: old versions of llama.cpp do not read it")
    return notices
