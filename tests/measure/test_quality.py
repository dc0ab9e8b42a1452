"""Perplexity and comparison against the definitions in float64, and on the command line."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_gemma import Gemma
from edge_gemma.commands import cli, terminal
from edge_gemma.errors import NumericalError
from edge_gemma.measure.quality import ROWS, compare, log_normalizer, perplexity, text_windows, windows
from tests.conftest import TinyGguf
from tests.goldens.real import BOS, DATA, WINDOW, negative_log_likelihood
from tests.goldens.real import windows as real_windows

TEXT = "aa bb ab ba " * 40
CONTEXT = 48
CASE = "gemma2-2b"
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def reference(tiny_gguf: TinyGguf) -> Iterator[Gemma]:
    with Gemma(tiny_gguf(CASE, "F32"), context=64, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def model(tiny_gguf: TinyGguf) -> Iterator[Gemma]:
    """Another rounding of the reference's weights, so that the two differ a little."""
    with Gemma(tiny_gguf(CASE, "Q8_0"), context=64, threads=1) as opened:
        yield opened


def log_probabilities(model: Gemma, window: list[int]) -> Floats:
    """Of every token after each of the window's but the last: float64 (T - 1, V)."""
    logits = model.logits(window[:-1]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    result: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return result


# ---- windows ---------------------------------------------------------------------------------------------------------


@given(ids=st.lists(st.integers(3, 99), min_size=1, max_size=60), context=st.integers(2, 20), limit=st.integers(1, 9))
def test_every_token_is_predicted_once(ids: list[int], context: int, limit: int) -> None:
    cut = windows(ids, 2, context)
    assert [token for window in cut for token in window[1:]] == ids
    assert all(window[0] == 2 and 2 <= len(window) <= context for window in cut)
    assert all(len(window) == context for window in cut[:-1])
    assert windows(ids, 2, context, limit) == cut[:limit]


@pytest.mark.parametrize(
    ("ids", "context", "limit", "message"),
    [([], 8, None, "no tokens"), ([5], 1, None, "context: 1"), ([5], 8, 0, "windows: 0")],
)
def test_windows_that_make_no_sense(ids: list[int], context: int, limit: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windows(ids, 2, context, limit)


def test_windows_no_longer_than_the_models_context(model: Gemma) -> None:
    with pytest.raises(ValueError, match="context: 65 is more than 64"):
        text_windows(model, TEXT, 65)


# ---- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 32, 500])
def test_logits_in_chunks_are_the_logits(model: Gemma, rows: int) -> None:
    ids = text_windows(model, TEXT, CONTEXT)[0]
    chunks = list(model.logits_chunks(ids, rows))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert np.array_equal(np.concatenate(chunks), model.logits(ids))


def test_a_dropped_iterator_frees_the_model(model: Gemma) -> None:
    chunks = model.logits_chunks([2, 5, 6, 7], 1)
    next(chunks)
    del chunks
    assert model.logits([2, 5]).shape == (2, model.config.vocab_size)


def test_perplexity_is_its_definition(model: Gemma) -> None:
    cut = text_windows(model, TEXT, CONTEXT)
    assert len(cut) > 2
    assert max(map(len, cut)) > ROWS + 1  # more than a chunk
    losses = np.concatenate([-log_probabilities(model, w)[np.arange(len(w) - 1), w[1:]] for w in cut])
    seen: list[tuple[int, int]] = []
    result = perplexity(model, cut, lambda done, total: seen.append((done, total)))
    assert result.value == pytest.approx(np.exp(losses.mean()), rel=1e-6)
    assert result.error == pytest.approx(result.value * losses.std() / np.sqrt(len(losses)), rel=1e-5)
    assert (result.tokens, result.windows) == (len(losses), len(cut))
    assert seen[-1] == (len(losses), len(losses))
    assert seen == sorted(seen)


def test_a_comparison_is_its_definitions(model: Gemma, reference: Gemma) -> None:
    cut = text_windows(model, TEXT, CONTEXT, 3)
    q, p = (np.concatenate([log_probabilities(m, w) for w in cut]) for m in (model, reference))
    targets = np.concatenate([w[1:] for w in cut])
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    true_q, true_p = (table[np.arange(len(targets)), targets] for table in (q, p))
    got = compare(model, reference, cut)
    np.testing.assert_allclose(got.divergence, divergence, rtol=1e-4, atol=1e-7)
    assert divergence.mean() > 1e-4  # the models do differ
    summary = got.summary()
    expected = {
        "kl_mean": divergence.mean(),
        "kl_p99": np.percentile(divergence, 99),
        "kl_max": divergence.max(),
        "top_1": (q.argmax(axis=1) == p.argmax(axis=1)).mean(),
        "perplexity": np.exp(-true_q.mean()),
        "reference_perplexity": np.exp(-true_p.mean()),
        "perplexity_ratio": np.exp(true_p.mean() - true_q.mean()),
        "rms_probability_change": np.sqrt(((np.exp(true_q) - np.exp(true_p)) ** 2).mean()),
        "tokens": len(targets),
        "windows": 3,
    }
    assert summary == pytest.approx(expected | {"kl_error": summary["kl_error"]}, rel=1e-4)


def test_a_model_is_no_distance_from_itself(model: Gemma, tiny_gguf: TinyGguf) -> None:
    with Gemma(tiny_gguf(CASE, "Q8_0"), context=64, threads=2, chunk=5) as same:
        got = compare(same, model, text_windows(model, TEXT, CONTEXT, 2))
    assert not got.divergence.any()
    assert (got.top_1, got.perplexity_ratio, got.rms_probability_change) == (1.0, 1.0, 0.0)


def test_perplexities_of_compare_and_perplexity_agree(model: Gemma, reference: Gemma) -> None:
    cut = text_windows(model, TEXT, CONTEXT, 2)
    assert compare(reference, model, cut).perplexity == pytest.approx(perplexity(reference, cut).value, rel=1e-12)


def test_models_of_two_vocabularies_are_not_compared(model: Gemma, tiny_gguf: TinyGguf) -> None:
    with Gemma(tiny_gguf("gemma3-256"), context=64) as other, pytest.raises(ValueError, match="vocabularies have"):
        compare(other, model, [[2, 5, 6]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(NumericalError):
        log_normalizer(np.array([bad, bad], np.float32))


def test_log_normalizer_does_not_overflow() -> None:
    assert log_normalizer(np.array([3e38, 3e38], np.float32)) == pytest.approx(3e38)
    assert log_normalizer(np.array([-1000.0, -1000.0], np.float32)) == pytest.approx(-1000 + np.log(2))


def test_the_real_models_perplexity(real_model: Path) -> None:
    """Over the first window of the recorded text: as computed at once, and as llama.cpp has it."""
    with np.load(DATA / "text_ids.npz") as ids, np.load(DATA / "llama_cpp_270m.npz") as peer:
        window = real_windows(ids["ids"])[0]
        theirs = float(np.exp(peer["nll"][0] / (WINDOW - 1)))
        with Gemma(real_model, context=WINDOW, threads=2) as model:
            ours = perplexity(model, windows(ids["ids"].tolist(), BOS, WINDOW, 1)).value
            at_once = np.exp(negative_log_likelihood(window, model.logits(window.tolist())) / (WINDOW - 1))
    assert ours == pytest.approx(at_once, rel=1e-5)
    assert ours == pytest.approx(theirs, rel=0.02)


class Gabbler:
    """Random logits over a large vocabulary, as many at a time as it is asked for."""

    def __init__(self, seed: int) -> None:
        self.config = SimpleNamespace(vocab_size=2**18)
        self._rng = np.random.default_rng(seed)

    def logits_chunks(self, ids: list[int], rows: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(ids), rows):
            yield self._rng.standard_normal((len(ids[start : start + rows]), 2**18), np.float32)


def test_memory_is_bounded_by_chunks_of_rows() -> None:
    """Two chunks of each model may meet while the next ones are made; all logits of the window would be 8 of each."""
    ours, theirs = (cast(Gemma, Gabbler(seed)) for seed in (1, 2))
    tracemalloc.start()
    compare(ours, theirs, [list(range(8 * ROWS + 1))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * ROWS * 2**18 * 4


# ---- command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_perplexity_command(
    model: Gemma, tiny_gguf: TinyGguf, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "perplexity",
        str(tiny_gguf(CASE, "Q8_0")),
        str(text_file),
        "-c",
        str(CONTEXT),
        "--windows",
        "2",
    ]
    expected = perplexity(model, text_windows(model, TEXT, CONTEXT, 2))
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "perplexity": expected.value,
        "error": expected.error,
        "tokens": expected.tokens,
        "windows": 2,
        "context": CONTEXT,
    }
    assert cli.main(arguments) == 0
    out = capsys.readouterr()
    assert out.out == (
        f"perplexity {expected.value:.4f} ± {expected.error:.4f} over {expected.tokens} tokens in 2 windows of 48\n"
    )
    assert out.err == ""


def test_progress_counts_tokens_on_a_terminal_and_now_and_then_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = terminal.token_progress("reading")
    logged(1, 3)
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    logged(2, 3)
    logged(3, 3)
    assert capsys.readouterr().err == "reading (2 of 3 tokens)\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    live = terminal.token_progress("reading")
    live(1, 2)
    live(2, 2)
    assert capsys.readouterr().err == "\rreading (1 of 2 tokens)\r" + " " * 23 + "\r"


def compare_arguments(tiny_gguf: TinyGguf, text_file: Path, *more: str) -> list[str]:
    models = (str(tiny_gguf(CASE, kind)) for kind in ("Q8_0", "F32"))
    return ["compare", *models, str(text_file), "-c", str(CONTEXT), "--windows", "2", *more]


def test_compare_command(
    model: Gemma, reference: Gemma, tiny_gguf: TinyGguf, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = compare(model, reference, text_windows(model, TEXT, CONTEXT, 2))
    assert cli.main(compare_arguments(tiny_gguf, text_file, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == expected.summary() | {"context": CONTEXT}
    assert cli.main(compare_arguments(tiny_gguf, text_file)) == 0
    out = capsys.readouterr().out
    assert f"{expected.kl_mean:.6f}" in out
    assert f"{100 * expected.top_1:.3f} %" in out


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_compare_draws(tiny_gguf: TinyGguf, text_file: Path, name: str, magic: bytes) -> None:
    path = text_file.parent / name
    assert cli.main(compare_arguments(tiny_gguf, text_file, "--plot", str(path))) == 0
    assert path.read_bytes().startswith(magic)


def test_without_matplotlib_the_error_names_the_extra(
    tiny_gguf: TinyGguf, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert cli.main(compare_arguments(tiny_gguf, text_file, "--plot", "a.png")) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == 'edge-gemma: error: --plot needs matplotlib: pip install "edge-gemma[plot]"\n'


def test_a_plot_that_cannot_be_written_is_seen_at_once(
    tiny_gguf: TinyGguf, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, message in (("a.gif", ".png"), (str(text_file.parent / "none" / "a.png"), "not a folder")):
        assert cli.main(compare_arguments(tiny_gguf, text_file, "--plot", path)) == 2
        out = capsys.readouterr()
        assert message in out.err and out.err.count("\n") == 1 and out.out == ""


def test_two_vocabularies_are_one_line(
    tiny_gguf: TinyGguf, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (str(tiny_gguf(CASE)), str(tiny_gguf("gemma3-256")))
    assert cli.main(["compare", *models, str(text_file), "-c", "8"]) == 2
    assert "vocabularies" in capsys.readouterr().err
