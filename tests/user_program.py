"""A user's program, for the type checker alone: what the face of the package is, by the types it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import edge_gemma
from edge_gemma import (
    AnswerOptions,
    AsyncStream,
    Cancelled,
    Completion,
    Gemma,
    SamplingParams,
    Stats,
    Stream,
    TokenSequence,
    Usage,
)


def program(model: Gemma, options: AnswerOptions) -> None:
    """Every call, and what comes of it."""
    assert_type(model.generate("a", max_tokens=3, stop=["\n"], seed=None, deadline=2.5, priority=1), Completion)
    assert_type(model.generate([1, 2], n=3, temperature=0.0), list[Completion])
    assert_type(model.generate("a", **options).usage, Usage)
    stream = model.stream("a", on_progress=lambda done, total: None)
    assert_type(stream, Stream)
    assert_type(next(stream), str)
    assert_type(model.generate_many(["a", [1]], top_k=1), Iterator[tuple[int, Completion]])
    assert_type(model.logits([1]), NDArray[np.float32])
    assert_type(model.stats(), Stats)
    with model.sequence() as sequence:
        assert_type(sequence, TokenSequence)
        assert_type(sequence.sample(temperature=1.0, seed=3), int)
        assert_type(sequence.logits, NDArray[np.float32])
        assert_type(sequence.fork(), TokenSequence)


async def asynchronous(model: Gemma) -> str:
    """The same in an event loop."""
    stream = model.astream("a", max_tokens=3)
    assert_type(stream, AsyncStream)
    try:
        assert_type(await model.agenerate("a"), Completion)
    except Cancelled as cancelled:
        return str(cancelled)
    return "".join([piece async for piece in stream])


def mistakes(model: Gemma) -> None:
    """What a type checker is to find: each comment is an error itself if there is nothing to ignore."""
    model.generate("a", temprature=1.0)  # type: ignore[call-overload]
    model.stream("a", max_tokens="3")  # type: ignore[arg-type]
    model.stream("a", n=2)  # type: ignore[call-arg]
    model.sequence().sample(max_tokens=3)  # type: ignore[call-arg]
    SamplingParams(heat=1.0)  # type: ignore[call-arg]
    edge_gemma.Gemini  # type: ignore[attr-defined]  # noqa: B018
