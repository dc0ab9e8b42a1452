"""The real Gemma 3 270M beside llama.cpp on the same file, and both beside the float32 run of the same weights."""

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

NEAR_TIE = 0.25
"""Lead in logits below which two right implementations may choose differently: 8-bit activations move each by ~0.1."""


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


def test_the_text_has_the_same_ids_as_in_llama_cpp(model: Gemma) -> None:
    with np.load(DATA / "text_ids.npz") as file:
        assert model.tokenize(text(), add_bos=False) == file["ids"].tolist()


def test_best_tokens_agree_with_llama_cpp(measured: Measured, peer: Arrays) -> None:
    assert measured.top_1.size >= 2000
    assert np.mean(measured.top_1 == peer["top_1"]) >= 0.99


def test_best_tokens_agree_with_float32_as_often_as_llama_cpps(
    measured: Measured, peer: Arrays, reference: Arrays
) -> None:
    exact = reference["top_ids"][:, :, 0]
    ours, theirs = np.mean(measured.top_1 == exact), np.mean(peer["top_1"] == exact)
    assert ours >= theirs - 0.005


def test_divergence_from_float32_is_no_larger_than_llama_cpps(measured: Measured, peer: Arrays) -> None:
    assert measured.divergence.mean() <= peer["divergence"].mean()


def test_perplexity_equals_llama_cpps(measured: Measured, peer: Arrays) -> None:
    predicted = WINDOWS * (WINDOW - 1)
    assert predicted >= 20_000
    ours, theirs = (np.exp(np.sum(nll) / predicted) for nll in (measured.nll, peer["nll"]))
    assert abs(ours / theirs - 1) <= 0.005


def test_greedy_continuations_agree_with_llama_cpps_under_its_own_choices(model: Gemma, peer: Arrays) -> None:
    """Given llama.cpp's text so far, the next token is the same in 99% of 512 steps, and elsewhere nearly tied."""
    chosen = []
    for prompt, golden in zip(PROMPTS, peer["greedy"].tolist(), strict=True):
        ids = model.tokenize(prompt, add_bos=True)
        chosen.append(model.logits([*ids, *golden[:-1]])[len(ids) - 1 :].argmax(axis=1))
    same = np.array(chosen) == peer["greedy"]
    assert same.shape == (8, GREEDY_TOKENS)
    assert same.mean() >= 0.99
    assert (peer["greedy_lead"][~same] < NEAR_TIE).all()


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_greedy_text_is_llama_cpps_until_a_near_tie(model: Gemma, peer: Arrays, i: int) -> None:
    golden = peer["greedy"][i].tolist()
    out = model.generate(PROMPTS[i], max_tokens=GREEDY_TOKENS)
    pairs = zip(out.token_ids, golden, strict=False)
    split = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), GREEDY_TOKENS)
    if split == GREEDY_TOKENS:
        assert list(out.token_ids) == golden
        assert out.finish_reason == "length"
        assert out.text == model.detokenize(golden)
    else:
        assert peer["greedy_lead"][i, split] < NEAR_TIE, f"token {split}: {out.text!r}"


def test_prompts_of_text_and_of_ids_are_the_same(model: Gemma) -> None:
    ids = model.tokenize(PROMPTS[0], add_bos=True)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert model.generate(ids, max_tokens=8).token_ids == model.generate(PROMPTS[0], max_tokens=8).token_ids
