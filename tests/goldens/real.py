"""What the tests of the real Gemma 3 270M ask, and how answers are measured; NumPy only. Knows no runtime and no peer.

The scripts that record and the tests that compare both use these prompts, windows and formulas. The text is the
beginning of Ambrose Bierce's "The Devil's Dictionary" (1911, copyright expired; The Internet Wiretap's edition of
1993, as packaged in Debian's dict-devil 1.0), trailing blanks of its lines removed.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"
TEXT = DATA / "devils_dictionary.txt.gz"
BOS = 2
WINDOW = 512  # tokens, of which the first is BOS
WINDOWS = 40  # over which perplexity is taken: 40 * 511 predicted tokens
COMPARED = 4  # the first windows, over which top-1 and divergence are taken: 2,044 positions
TOP = 64  # ids of the reference kept per position; what lies outside counts as one event
GREEDY_TOKENS = 64

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village at the edge of a great forest, there lived",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "Les principaux avantages de l'\u00e9nergie solaire sont",
    "Ingredients:\n- 2 cups of flour\n- 1 teaspoon of salt\n-",
    "Q: Why is the sky blue?\nA:",
    "\u4eca\u65e5\u306f\u5929\u6c17\u304c\u3044\u3044\u306e\u3067\u3001",
    "The theory of general relativity, published by Albert Einstein in 1915, describes",
]

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def text() -> str:
    return gzip.decompress(TEXT.read_bytes()).decode("ascii")


def windows(ids: npt.ArrayLike) -> Ids:
    """The text's ids (without BOS) cut into (WINDOWS, WINDOW), each window beginning with BOS."""
    body = WINDOW - 1
    cut = np.asarray(ids, np.int32)[: WINDOWS * body].reshape(WINDOWS, body)
    return np.concatenate([np.full((WINDOWS, 1), BOS, np.int32), cut], axis=1)


def log_normalizer(row: Floats, scratch: Floats) -> float:
    """log(sum(exp(row))) of one position's logits. `scratch` has its size: fresh memory per row costs 6 times more."""
    top = row.max()
    np.exp(np.subtract(row, top, out=scratch), out=scratch)
    return float(top) + float(np.log(scratch.sum()))


def negative_log_likelihood(window: Ids, logits: Floats) -> float:
    """Sum over a window of -log p(next token); `logits` is (WINDOW, vocab) and its last row predicts nothing."""
    scratch = np.empty_like(logits[0])
    pairs = zip(logits[:-1], window[1:], strict=True)
    return sum(log_normalizer(row, scratch) - float(row[token]) for row, token in pairs)


def reference_top(row: Floats) -> tuple[Ids, Floats]:
    """The TOP most probable ids of one position, best first, and their log-probabilities."""
    best = np.argpartition(-row, TOP)[:TOP].astype(np.int32)
    best = best[np.argsort(-row[best], kind="stable")]
    return best, (row[best] - np.float32(log_normalizer(row, np.empty_like(row)))).astype(np.float32)


def divergence(top_ids: Ids, top_log_p: Floats, row: Floats, scratch: Floats | None = None) -> float:
    """KL(reference || row) in nats over the reference's TOP ids and the event "any other id"."""
    log_p = top_log_p.astype(np.float64)
    log_q = row[top_ids].astype(np.float64) - log_normalizer(row, np.empty_like(row) if scratch is None else scratch)
    rest_p, rest_q = (max(1 - float(np.exp(log).sum()), 1e-9) for log in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum() + rest_p * np.log(rest_p / rest_q))
