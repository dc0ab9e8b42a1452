"""Texts to embeddings for `Gemma.embed`: arguments checked, tokens, the engine's steps. Knows no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.engine import encoder
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.runner import Runner
from edge_gemma.errors import ContextOverflowError
from edge_gemma.models.embedding import Embedding
from edge_gemma.text.tokenizer import Tokenizer

Text = str | Sequence[int]


def embed(
    runner: Runner,
    engine: Engine,
    tokenizer: Tokenizer,
    texts: str | Sequence[Text],
    prompt: str | None,
    dimensions: int | None,
    truncate: bool,
) -> NDArray[np.float32]:
    """See `Gemma.embed`."""
    embedding = runner.config.embedding
    if embedding is None:
        raise ValueError(f"{runner.config.architecture} is a model that continues texts; it makes no embeddings")
    width = arguments.optional_integer("dimensions", dimensions, 1, embedding.width) or embedding.width
    prefix, cut = _prefix(embedding, prompt), arguments.flag("truncate", truncate)
    ids = [_ids(runner, tokenizer, f"texts[{i}]", text, prefix, cut=cut) for i, text in enumerate(_several(texts))]
    out = np.empty((len(ids), embedding.width), np.float32)
    for step in encoder.steps([len(text) for text in ids], runner.chunk):
        together = partial(encoder.embed, runner, ids[step.start : step.stop])
        out[step.start : step.stop] = engine.call(together)
    return out if width == embedding.width else encoder.of_length_one(out[:, :width])


def _several(texts: str | Sequence[Text]) -> Sequence[Text]:
    """One text is a list of one."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence):
        raise TypeError(f"texts: expected a text or several, got {arguments.shown(texts)}")
    return texts


def _prefix(embedding: Embedding, prompt: str | None) -> str:
    if prompt is None:
        return ""
    if prompt not in embedding.prompts:
        known = ", ".join(embedding.prompts) or "it has none"
        raise ValueError(f"prompt: {arguments.shown(prompt)} is none of the model's ({known})")
    return embedding.prompts[prompt]


def _ids(runner: Runner, tokenizer: Tokenizer, name: str, text: Text, prefix: str, *, cut: bool) -> NDArray[np.int64]:
    """The tokens of a text between BOS and EOS, or those that are given. Raises as `Gemma.embed` does."""
    ids = (
        _encoded(tokenizer, name, prefix + text)
        if isinstance(text, str)
        else arguments.token_ids(name, text, runner.config.vocab_size)
    )
    if not ids:
        raise ValueError(f"{name}: there must be at least one token")
    if len(ids) > runner.context:
        if not cut:
            raise ContextOverflowError(
                f"{name}: {len(ids)} tokens do not fit the context of {runner.context}; "
                "open with a larger one, or truncate"
            )
        ids = [*ids[: runner.context - 1], ids[-1]]
    return np.array(ids, np.int64)


def _encoded(tokenizer: Tokenizer, name: str, text: str) -> list[int]:
    try:
        return [*tokenizer.encode(text), tokenizer.eos_id]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
