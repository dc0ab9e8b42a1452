"""The real Gemma 3 270M beside llama.cpp on the same file, and both beside the float32 run of the same weights.

Rounding activations to 8 bits moves this model's logits so far that the best token changes in 4.5% of the positions of
this text, whoever rounds. llama.cpp with other kernels of its own (no repacked weights, no flash attention) names the
same best token in 95.2% of them, and in 99.4% of those where the best logit leads by 0.3. So the 99% asked of us is
asked where there is a lead, and over all positions we must agree with llama.cpp as it agrees with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_gemma import Gemma
from tests.goldens.real import (
    BOS,
    COMPARED,
    DATA,
    GREEDY_TOKENS,
    PROMPTS,
    WINDOW,
    WINDOWS,
    divergence,
    negative_log_likelihood,
    text,
    windows,
)

Arrays = dict[str, npt.NDArray[np.float32]]
Flags = npt.NDArray[np.bool_]

CLEAR_LEAD = 0.3
"""Of the best logit over the second: there llama.cpp agrees with itself in 99.4% (text) and 99.8% (greedy)."""
TIE = 1.0
"""A lead never lost between llama.cpp's kernels, whose greatest is 0.84."""


@dataclass(frozen=True)
class Measured:
    """What one pass over the text's windows gives."""

    nll: list[float]  # per window
    top_1: npt.NDArray[np.int64]  # (COMPARED, WINDOW - 1)
    divergence: npt.NDArray[np.float64]  # (COMPARED, WINDOW - 1), from the float32 reference


@pytest.fixture(scope="module")
def model(real_model: Path) -> Iterator[Gemma]:
    with Gemma(real_model, context=WINDOW, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def peer() -> Arrays:
    with np.load(DATA / "llama_cpp_270m.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def reference() -> Arrays:
    with np.load(DATA / "reference_270m.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def measured(model: Gemma, reference: Arrays) -> Measured:
    with np.load(DATA / "text_ids.npz") as file:
        ids = file["ids"]
    nll, top_1, kl = [], [], []
    for i, window in enumerate(windows(ids)):
        logits = model.logits(window.tolist())
        nll.append(negative_log_likelihood(window, logits))
        if i < COMPARED:
            top_1.append(logits[:-1].argmax(axis=1))
            top = zip(reference["top_ids"][i], reference["top_log_p"][i], logits[:-1], strict=True)
            kl.append([divergence(best, log_p, row) for best, log_p, row in top])
    return Measured(nll, np.array(top_1), np.array(kl))


def _at_least(ours: Flags, theirs: Flags) -> bool:
    """Whether we agree as often as they do, up to three standard deviations of the difference of two such counts."""
    p = theirs.mean()
    return bool(ours.mean() >= p - 3 * np.sqrt(2 * p * (1 - p) / theirs.size))


def test_the_text_has_the_same_ids_as_in_llama_cpp(model: Gemma) -> None:
    with np.load(DATA / "text_ids.npz") as file:
        assert model.tokenize(text(), add_bos=False) == file["ids"].tolist()


def test_best_tokens_agree_with_llama_cpp(measured: Measured, peer: Arrays) -> None:
    same = measured.top_1 == peer["top_1"]
    assert same.size >= 2000
    assert same[peer["lead"] >= CLEAR_LEAD].mean() >= 0.99
    assert same[peer["lead"] >= TIE].all()
    assert _at_least(same, peer["plain_top_1"] == peer["top_1"])


def test_best_tokens_agree_with_float32_as_llama_cpps_do(measured: Measured, peer: Arrays, reference: Arrays) -> None:
    exact = reference["top_ids"][:, :, 0]
    assert _at_least(measured.top_1 == exact, peer["top_1"] == exact)


def test_divergence_from_float32_is_no_larger_than_llama_cpps(measured: Measured, peer: Arrays) -> None:
    assert measured.divergence.mean() <= peer["divergence"].mean()


def test_perplexity_equals_llama_cpps(measured: Measured, peer: Arrays) -> None:
    predicted = WINDOWS * (WINDOW - 1)
    assert predicted >= 20_000
    ours, theirs = (np.exp(np.sum(nll) / predicted) for nll in (measured.nll, peer["nll"]))
    assert abs(ours / theirs - 1) <= 0.005


def test_greedy_tokens_agree_with_llama_cpps_given_its_text_so_far(model: Gemma, peer: Arrays) -> None:
    """8 prompts x 64 tokens; llama.cpp's plain kernels agree with its default ones in 98% of them."""
    chosen = []
    for prompt, golden in zip(PROMPTS, peer["greedy"].tolist(), strict=True):
        ids = model.tokenize(prompt, add_bos=True)
        chosen.append(model.logits([*ids, *golden[:-1]])[len(ids) - 1 :].argmax(axis=1))
    same = np.array(chosen) == peer["greedy"]
    assert same.shape == (8, GREEDY_TOKENS)
    assert same[peer["greedy_lead"] >= CLEAR_LEAD].mean() >= 0.99
    assert _at_least(same, peer["plain_greedy_forced"] == peer["greedy"])


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_greedy_text_is_llama_cpps_until_a_tie(model: Gemma, peer: Arrays, i: int) -> None:
    golden = peer["greedy"][i].tolist()
    out = model.generate(PROMPTS[i], max_tokens=GREEDY_TOKENS, temperature=0.0)
    pairs = zip(out.token_ids, golden, strict=False)
    split = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), GREEDY_TOKENS)
    if split == GREEDY_TOKENS:
        assert list(out.token_ids) == golden
        assert out.finish_reason == "length"
        assert out.text == model.detokenize(golden)
    else:
        assert peer["greedy_lead"][i, split] < TIE, f"token {split}: {out.text!r}"


def test_prompts_of_text_and_of_ids_are_the_same(model: Gemma) -> None:
    ids = model.tokenize(PROMPTS[0], add_bos=True)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    by_ids, by_text = (model.generate(p, max_tokens=8, temperature=0.0) for p in (ids, PROMPTS[0]))
    assert by_ids.token_ids == by_text.token_ids
