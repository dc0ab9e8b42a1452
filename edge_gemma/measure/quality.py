"""How well a model predicts a text, and how far it is from another one. Knows no files and prints nothing.

A text is cut into windows of `context` tokens, each beginning with BOS, so that every token is predicted exactly once.
Logits are taken a few rows at a time: a vocabulary of 262,144 makes a megabyte of each. All logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import NumericalError
from edge_gemma.gemma import Gemma
from edge_gemma.progress import TokenProgress

Floats = NDArray[np.float32]

DEFAULT_CONTEXT = 512
MIN_CONTEXT = 2
ROWS = 32
"""Positions whose logits are in memory at a time; the larger this is, the faster the products."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean of -log p(token) over `tokens` tokens in `windows` windows; `error` is its standard error."""

    value: float
    error: float
    tokens: int
    windows: int


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference, token by token: arrays of (tokens,) in the order of the text.

    `divergence`: Kullback-Leibler divergence of the model's prediction from the reference's, KL(reference || model).
    `log_probability` and `reference_log_probability` are those of the token that follows; `same_top` says whether both
    models think the same token best.
    """

    divergence: NDArray[np.float64]
    log_probability: NDArray[np.float64]
    reference_log_probability: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    windows: int

    @property
    def kl_mean(self) -> float:
        """Mean divergence, in nats."""
        return float(self.divergence.mean())

    @property
    def kl_error(self) -> float:
        """Standard error of the mean divergence."""
        return float(self.divergence.std() / math.sqrt(len(self.divergence)))

    @property
    def kl_p99(self) -> float:
        """The divergence that 99 of 100 tokens stay below."""
        return float(np.percentile(self.divergence, 99))

    @property
    def top_1(self) -> float:
        """Share of tokens where both models think the same one best."""
        return float(self.same_top.mean())

    @property
    def perplexity(self) -> float:
        """The model's of the text: exp of the mean negative log-probability of a token."""
        return math.exp(-float(self.log_probability.mean()))

    @property
    def reference_perplexity(self) -> float:
        """The reference's of the text."""
        return math.exp(-float(self.reference_log_probability.mean()))

    @property
    def perplexity_ratio(self) -> float:
        """The model's over the reference's: above 1 it predicts the text worse."""
        return self.perplexity / self.reference_perplexity

    @property
    def probability_change(self) -> NDArray[np.float64]:
        """Of the token that follows: how much more probable the model thinks it than the reference, (tokens,)."""
        change: NDArray[np.float64] = np.exp(self.log_probability) - np.exp(self.reference_log_probability)
        return change

    @property
    def rms_probability_change(self) -> float:
        """Root mean square of `probability_change`."""
        return float(np.sqrt(np.mean(self.probability_change**2)))

    def summary(self) -> dict[str, float | int]:
        """All figures by name, for people and JSON."""
        return {
            "kl_mean": self.kl_mean,
            "kl_error": self.kl_error,
            "kl_p99": self.kl_p99,
            "kl_max": float(self.divergence.max()),
            "top_1": self.top_1,
            "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
            "perplexity_ratio": self.perplexity_ratio,
            "rms_probability_change": self.rms_probability_change,
            "tokens": len(self.divergence),
            "windows": self.windows,
        }


def windows(ids: Sequence[int], bos: int, context: int, limit: int | None = None) -> list[list[int]]:
    """`ids` (without BOS) as windows of at most `context` tokens, each beginning with BOS; the first `limit` of them.

    Raises ValueError for a text without tokens, or a context that holds nothing beside BOS.
    """
    if context < MIN_CONTEXT:
        raise ValueError(f"context: {context} is less than {MIN_CONTEXT}")
    if limit is not None and limit < 1:
        raise ValueError(f"windows: {limit} is less than 1")
    if not len(ids):
        raise ValueError("the text has no tokens")
    body = context - 1
    cut = [[bos, *ids[start : start + body]] for start in range(0, len(ids), body)]
    return cut[:limit]


def text_windows(model: Gemma, text: str, context: int = DEFAULT_CONTEXT, limit: int | None = None) -> list[list[int]]:
    """`windows` of a text, by the model's tokenizer."""
    if context > model.context:
        raise ValueError(f"context: {context} is more than {model.context}, with which the model was opened")
    return windows(model.tokenize(text, add_bos=False), model.tokenizer.bos_id, context, limit)


def perplexity(model: Gemma, cut: Sequence[Sequence[int]], progress: TokenProgress | None = None) -> Perplexity:
    """Perplexity over windows of tokens. Raises NumericalError for logits that are not finite."""
    losses: list[float] = []
    report = _reporter(cut, progress)
    for window in cut:
        for targets, logits in _predictions(model, window):
            losses += [log_normalizer(row) - float(row[t]) for row, t in zip(logits, targets, strict=True)]
            report(len(targets))
    loss = np.array(losses)
    value = math.exp(loss.mean())
    return Perplexity(value, value * float(loss.std()) / math.sqrt(len(loss)), len(loss), len(cut))


def compare(
    model: Gemma, reference: Gemma, cut: Sequence[Sequence[int]], progress: TokenProgress | None = None
) -> Comparison:
    """`model` beside `reference` over windows of tokens, which both must understand alike.

    Raises ValueError for vocabularies of two sizes, NumericalError for logits that are not finite.
    """
    sizes = model.config.vocab_size, reference.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models' vocabularies have {sizes[0]} and {sizes[1]} tokens: they cannot be compared")
    rows: list[tuple[float, float, float, bool]] = []
    report = _reporter(cut, progress)
    for window in cut:
        pairs = zip(_predictions(model, window), _predictions(reference, window), strict=True)
        for (targets, q), (_, p) in pairs:
            rows += [_compare_rows(*row) for row in zip(q, p, targets, strict=True)]
            report(len(targets))
    divergence, ours, theirs, same_top = (np.array(column) for column in zip(*rows, strict=True))
    return Comparison(divergence, ours, theirs, same_top, len(cut))


def log_normalizer(row: Floats) -> float:
    """log(sum(exp(row))): subtracted from logits it gives log-probabilities. Raises NumericalError for NaN, inf."""
    return _weights(row)[1]


def _weights(row: Floats) -> tuple[Floats, float]:
    """exp(row), scaled so that the greatest is 1, and the logarithm of the unscaled ones' sum."""
    top = row.max()
    if not np.isfinite(top):
        raise NumericalError("the model's logits are not finite")
    weights: Floats = np.exp(row - top)
    return weights, float(top) + math.log(weights.sum(dtype=np.float64))


def _compare_rows(q: Floats, p: Floats, target: int) -> tuple[float, float, float, bool]:
    """KL(p || q) of two rows of logits, the target's log-probability in q and in p, and whether their best is the same.

    With d = p - q of the logits the divergence is E_p[d] - log_normalizer(p) + log_normalizer(q).
    """
    log_q, (weights, log_p) = log_normalizer(q), _weights(p)
    expected = float(np.einsum("i,i", weights, p - q, dtype=np.float64)) / float(weights.sum(dtype=np.float64))
    divergence = expected - log_p + log_q
    if not math.isfinite(divergence):
        raise NumericalError("a model's logits are not finite")
    same_top = int(q.argmax()) == int(p.argmax())
    return max(0.0, divergence), float(q[target]) - log_q, float(p[target]) - log_p, same_top  # -1e-9 is rounding


def _predictions(model: Gemma, window: Sequence[int]) -> Iterator[tuple[Sequence[int], Floats]]:
    """The tokens of a window after its first, ROWS at a time, each with the logits that predict it."""
    for number, logits in enumerate(model.logits_chunks(window[:-1], ROWS)):
        first = 1 + number * ROWS
        yield window[first : first + len(logits)], logits


def _reporter(cut: Sequence[Sequence[int]], progress: TokenProgress | None) -> Callable[[int], None]:
    """Called with numbers of tokens as they are done, calls `progress` with their sum."""
    total = sum(len(window) - 1 for window in cut)
    done = 0

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress(done, total)

    return report
