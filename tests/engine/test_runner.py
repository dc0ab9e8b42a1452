"""Steps of several sequences: every logit has the bits it has when its sequence runs alone, from the start, at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_gemma.engine.memory_plan import KvType
from edge_gemma.engine.runner import Runner
from edge_gemma.errors import Cancelled, ContextOverflowError, EdgeGemmaError, MemoryBudgetError
from edge_gemma.graph.cache import PageTable
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels.layout import SPAN
from tests.conftest import TinyGguf

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

CASES: list[tuple[str, str, KvType]] = [
    ("gemma2-256", "Q4_K", "f16"),
    ("gemma3-4b", "F32", "f16"),
    ("gemma3-4b", "F32", "q8_0"),
]
CONTEXT, CHUNK = 1000, 300


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def runner(request: pytest.FixtureRequest, tiny_gguf: TinyGguf) -> Iterator[Runner]:
    *model, kv_type = request.param
    opened = Runner(tiny_gguf(*model), context=CONTEXT, chunk=CHUNK, threads=2, kv_type=kv_type, cache_limit=1 << 30)
    yield opened
    opened.close()


@pytest.fixture
def path(tiny_gguf: TinyGguf) -> Path:
    return tiny_gguf(*CASES[0][:2])


def ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 256, count)


def alone(runner: Runner, tokens: Ids) -> Logits:
    """All logits of a sequence that runs by itself, in whole chunks."""
    table = runner.new_table()
    parts = [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)]
    logits = np.concatenate([runner.run([SequenceRows(table, part, len(part))]).copy() for part in parts])
    table.release()
    assert np.isfinite(logits).all()
    return logits


def same(a: Logits, b: Logits) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


# ---- equal bits --------------------------------------------------------------------------------------------------


@dataclass
class Sequences:
    """Tables, what each has read, and the logits that steps gave: for each, after how many tokens of what text."""

    runner: Runner
    tables: list[PageTable] = field(default_factory=list)
    texts: list[Ids] = field(default_factory=list)
    given: list[tuple[Ids, Logits]] = field(default_factory=list)
    seed: int = 0

    def begin(self) -> int:
        self.tables.append(self.runner.new_table())
        self.texts.append(ids(0))
        return len(self.tables) - 1

    def step(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """One step of `parts`: which sequence, how many tokens, of how many the logits are wanted."""
        batch = []
        for which, count, wanted in parts:
            self.seed += 1
            batch.append(SequenceRows(self.tables[which], ids(count, self.seed), wanted))
            self.texts[which] = np.concatenate([self.texts[which], batch[-1].tokens])
        logits, row = self.runner.run(batch).copy(), 0
        for which, _, wanted in parts:
            assert self.tables[which].length == len(self.texts[which])
            self.given.append((self.texts[which], logits[row : row + wanted]))
            row += wanted
        assert row == len(logits)

    def fork(self, which: int) -> int:
        self.tables.append(self.tables[which].fork())
        self.texts.append(self.texts[which])
        return len(self.tables) - 1

    def truncate(self, which: int, length: int) -> None:
        self.tables[which].truncate(length)
        self.texts[which] = self.texts[which][:length]

    def check(self) -> None:
        """Against each text read alone."""
        for table in self.tables:
            table.release()
        texts = {text.tobytes(): text for text, logits in self.given if len(logits)}
        expected = {key: alone(self.runner, text) for key, text in texts.items()}
        for text, logits in self.given:
            if len(logits):
                assert same(logits, expected[text.tobytes()][-len(logits) :]), f"after {len(text)} tokens"
        assert self.runner.pool.bytes_in_use == 0


def test_prompts_and_decoding_rows_in_one_step(runner: Runner) -> None:
    s = Sequences(runner)
    a, b, c, d = (s.begin() for _ in range(4))
    s.step([(a, 280, 0)])
    s.step([(b, 20, 20), (c, 261, 1)])
    s.step([(a, 1, 1), (d, 40, 7), (b, 1, 1), (c, 100, 0)])
    s.step([(c, 1, 1), (a, 1, 1), (b, 1, 1), (d, 1, 1)])
    s.step([(d, 250, 1), (a, 1, 1)])
    s.check()


def test_forked_truncated_and_continued(runner: Runner) -> None:
    s = Sequences(runner)
    a = s.begin()
    s.step([(a, 300, 1)])
    b = s.fork(a)
    s.step([(a, 5, 5), (b, 3, 3)])
    s.truncate(a, 301)
    s.step([(a, 30, 30)])
    s.truncate(b, 0)
    c = s.fork(b)
    s.step([(b, 260, 2), (c, 1, 1), (a, 1, 1)])
    s.tables[a].release()
    s.step([(b, 1, 1), (c, 1, 1)])
    s.check()


PIECES = st.sampled_from([1, 1, 1, 1, 2, 3, 16, 31, 33, 64, 100, 255, 256, 257])
ACTS = st.one_of(
    st.tuples(
        st.just("step"), st.lists(st.tuples(st.integers(0, 9), PIECES, st.integers(0, 3)), min_size=1, max_size=6)
    ),
    st.tuples(st.sampled_from(["fork", "truncate", "begin", "release"]), st.integers(0, 99)),
)


@settings(max_examples=25)
@given(acts=st.lists(ACTS, min_size=2, max_size=12))
def test_any_batches(runner: Runner, acts: list[tuple[str, Any]]) -> None:
    s = Sequences(runner)
    s.begin()
    for name, act in acts:
        which = 0 if name == "step" else act % len(s.tables)
        match name:
            case "step":
                s.step(fitting(s, act))
            case "fork" if len(s.tables) < 8:
                s.fork(which)
            case "begin" if len(s.tables) < 8:
                s.begin()
            case "truncate":
                length = act * len(s.texts[which]) // 100
                if s.tables[which].can_truncate(length):
                    s.truncate(which, length)
            case "release":
                s.tables[which].release()
                s.tables[which], s.texts[which] = runner.new_table(), ids(0)
    s.check()


def fitting(s: Sequences, parts: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Each sequence once, no more rows than a step has, no sequence longer than the context."""
    fits: dict[int, tuple[int, int]] = {}
    for number, asked, wanted in parts:
        which, left = number % len(s.tables), CHUNK - sum(c for c, _ in fits.values())
        count = min(asked, left, CONTEXT - len(s.texts[which]))
        if which not in fits and count:
            fits[which] = count, min(wanted, count)
    return [(which, *sizes) for which, sizes in fits.items()] or [(s.begin(), 1, 1)]


def test_windows_give_pages_back(runner: Runner) -> None:
    """However long the text, and with the same bits."""
    s = Sequences(runner)
    a = s.begin()
    windows = [state.window for state in runner.config.states]
    for _ in range(0, CONTEXT - 50, 50):
        s.step([(a, 50, 1)])
        pages = np.count_nonzero(s.tables[a]._pages, axis=1).tolist()
        assert all(count <= 2 for count, window in zip(pages, windows, strict=True) if window)
    assert 10 * max(window for window in windows if window) < CONTEXT
    assert all(count == 4 for count, window in zip(pages, windows, strict=True) if not window)
    s.check()


def test_logits_go_where_they_are_wanted(runner: Runner) -> None:
    table, out = runner.new_table(), np.full((3, runner.config.vocab_size), np.float32(9))
    assert runner.run([SequenceRows(table, ids(5), 2)], out[:2]) is not None
    assert (out[2] == 9).all() and same(out[:2], alone(runner, ids(5))[-2:])
    assert len(runner.run([SequenceRows(table, ids(5), 0)])) == 0
    table.release()


# ---- what cannot be done -----------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_batch_is_said_and_nothing_done(runner: Runner) -> None:
    a, b, gone = (runner.new_table() for _ in range(3))
    gone.release()
    one, vocab = ids(1), runner.config.vocab_size
    cases: list[tuple[list[SequenceRows], type[Exception], str]] = [
        ([], ValueError, "a step of 0 rows"),
        ([SequenceRows(a, ids(200)), SequenceRows(b, ids(101))], ValueError, f"301 rows is outside 1..{CHUNK}"),
        ([SequenceRows(a, one), SequenceRows(b, one), SequenceRows(a, one)], ValueError, "twice"),
        ([SequenceRows(a, one), SequenceRows(b, ids(0))], ValueError, "at least one token"),
        ([SequenceRows(a, one), SequenceRows(b, np.array([vocab]))], ValueError, rf"0\.\.{vocab - 1}"),
        ([SequenceRows(a, one), SequenceRows(b, np.array([0.5]))], ValueError, "integers"),  # type: ignore[arg-type]
        ([SequenceRows(a, one, 2)], ValueError, "wanted: 2"),
        ([SequenceRows(gone, one)], ValueError, "released"),
    ]
    for batch, error, message in cases:
        with pytest.raises(error, match=message):
            runner.run(batch)
    with pytest.raises(ValueError, match="out: must be"):
        runner.run([SequenceRows(a, one, 1)], np.zeros((2, vocab), np.float32))
    for start in range(0, CONTEXT, 250):
        assert a.length == start
        runner.run([SequenceRows(a, ids(250))])
    with pytest.raises(ContextOverflowError, match=f"{CONTEXT + 1} tokens"):
        runner.run([SequenceRows(b, one), SequenceRows(a, one)])
    assert b.length == b.bytes == 0 and a.length == CONTEXT


def test_no_pages_left(path: Path) -> None:
    """Nothing is run, and the same step can be run when there are."""
    runner = Runner(path, context=600, chunk=300, threads=1)
    a, b, c = (runner.new_table() for _ in range(3))
    runner.run([SequenceRows(a, ids(250))])
    runner.run([SequenceRows(b, ids(256))])
    used = runner.pool.bytes_in_use
    batch = [SequenceRows(c, ids(3), 3), SequenceRows(a, ids(2), 2), SequenceRows(b, ids(1), 1)]
    with pytest.raises(MemoryBudgetError, match=f"{used} of {runner.plan.kv_cache} are in use"):
        runner.run(batch)
    assert (runner.pool.bytes_in_use, a.length, b.length, c.length) == (used, 250, 256, 0)
    b.release()
    logits = runner.run(batch[:2]).copy()
    c.release()
    a.release()
    assert same(logits, np.concatenate([alone(runner, ids(3)), alone(runner, np.concatenate([ids(250), ids(2)]))[-2:]]))
    runner.close()


def test_a_table_of_another_model(path: Path, runner: Runner) -> None:
    other = Runner(path, context=10, threads=1)
    with pytest.raises(ValueError, match="another model"):
        runner.run([SequenceRows(other.new_table(), ids(1))])
    other.close()
    with pytest.raises(EdgeGemmaError, match="closed"):
        other.new_table()


# ---- cancelling --------------------------------------------------------------------------------------------------


def test_a_cancel_ends_one_step_and_no_more(runner: Runner) -> None:
    table, batch = runner.new_table(), ids(5)
    runner.cancel()
    with pytest.raises(Cancelled):
        runner.run([SequenceRows(table, batch, 5)])
    assert table.length == 0
    assert same(runner.run([SequenceRows(table, batch, 5)]), alone(runner, batch))
    runner.cancel()
    runner.ready()
    runner.run([SequenceRows(table, batch, 5)])
    assert table.length == 10
    table.release()


def test_cancels_from_another_thread(runner: Runner) -> None:
    """Each ends a step or comes before one; whatever it meets, what is there stays right."""
    text, table, cancelled, end = ids(CONTEXT), runner.new_table(), 0, threading.Event()

    def cancel() -> None:
        while not end.wait(0.003):
            runner.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    logits = []
    while table.length < 900:
        before = table.length
        part = text[before : before + 1 + before % 97]
        try:
            logits.append(runner.run([SequenceRows(table, part, len(part))]).copy())
        except Cancelled:
            cancelled += 1
            assert table.length == before
    end.set()
    thread.join()
    runner.ready()
    assert cancelled
    assert same(np.concatenate(logits), alone(runner, text[: table.length]))
    table.release()


def test_an_exception_inside_a_step_cancels_no_other(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A team cancels the program that Ctrl-C broke into."""
    table = runner.new_table()

    def interrupted(*_: object) -> bool:
        runner.cancel()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner._threads, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run([SequenceRows(table, ids(3), 3)])
    assert same(runner.run([SequenceRows(table, ids(3), 3)]), alone(runner, ids(3)))
    table.release()


def test_weights_are_touched_in_the_first_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again after one that was cancelled; those of the logits when there are some."""
    runner, lengths = Runner(path, context=300, chunk=300, threads=2), []
    table, execute = runner.new_table(), runner._threads.run

    def noting(rows: NDArray[np.int64], step: NDArray[np.int64]) -> bool:
        lengths.append(len(rows))
        return execute(rows, step)

    monkeypatch.setattr(runner._threads, "run", noting)
    runner.cancel()
    with pytest.raises(Cancelled):
        runner.run([SequenceRows(table, ids(2))])
    for wanted in (0, 0, 1, 1, 2):
        runner.run([SequenceRows(table, ids(2), wanted)])
    body, head = len(runner.recording(2).body), len(runner.recording(1).head)
    touched = body + 7 * len(runner.weights.layers)
    assert lengths == [touched, touched, body, body, head + 1, body, head, body + head]
    runner.close()
    table.release()


def test_observing(path: Path) -> None:
    runner = Runner(path, context=300, chunk=300, threads=2, kv_type="f32", observe=True)
    table = runner.new_table()
    with pytest.raises(ValueError, match="wanted: 1"):
        runner.run([SequenceRows(table, ids(3), 1)])
    runner.run([SequenceRows(table, ids(SPAN))])
    before = {name: sums.copy() for name, sums in runner.activation_stats.items()}
    runner.run([SequenceRows(runner.new_table(), ids(SPAN))])
    assert "token_embd.weight" in before
    assert all(same(before[name], sums) and (sums > 0).all() for name, sums in runner.activation_stats.items())
    runner.close()
