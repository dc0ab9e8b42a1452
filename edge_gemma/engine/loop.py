"""The engine's thread: it alone has the runner, and computes step after step for all sequences. Knows no text.

    any thread --- commands ---> [ admit, schedule, run, hand out ] --- channels ---> readers

Whoever submits waits for nothing. What a caller does or forgets (a stream that is not read, an error in a callback, a
thread that ends) stops at its channel; what goes wrong in a step ends the sequences that were in it, and no others.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `kernels/native_threads.py`
from collections.abc import Callable
from collections.abc import Sequence as Ids
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty
from typing import TypeVar, cast

import numpy as np

from edge_gemma.engine.pages import Runner, Table
from edge_gemma.engine.prefix_cache import PrefixCache
from edge_gemma.engine.scheduler import Scheduler, Work, expired
from edge_gemma.engine.sequence import Generation, Logits, Sequence
from edge_gemma.engine.speculation import StepTimes
from edge_gemma.errors import Cancelled, EdgeGemmaError, ForkError, MemoryBudgetError
from edge_gemma.graph.cache import PageTable
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels.native_threads import start_thread

log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[], None]


LONGEST_WAIT = 3600.0
"""Seconds that are waited for a command at a time: some systems cannot wait for more than some weeks."""


@dataclass
class Stats:
    """What the engine has done since it was made, and does now.

    running, waiting: sequences, now. steps, prompt_tokens, completion_tokens: computed or made. cached_tokens: those of
    prompts that had not to be computed. checkpoints, page_bytes: prefixes that are kept, and all keys and values.
    """

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    checkpoints: int = 0
    page_bytes: int = 0


class Engine:
    """Runs sequences of one model, as many as `slots` at a time; more wait.

    prefix_cache: bytes of keys and values that are kept for later sequences. max_stall: see `Scheduler`.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        slots: int,
        prefix_cache: int,
        max_stall: float = 0.15,
        draft: Runner | None = None,
    ) -> None:
        """Takes over `runner`, and `draft`, which is only closed. Raises ThreadError."""
        self._runner, self._draft = runner, draft
        self._scheduler = Scheduler(slots, runner.chunk, max_stall)
        self._cache, self._cache_bytes = PrefixCache(), prefix_cache
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._closing = self._over = False
        self._in_step: list[Sequence] = []
        self._stats = Stats()
        self.step_times = StepTimes()
        """Of steps without a prompt, by their number of rows."""
        self._process = os.getpid()
        self._thread = start_thread(self._run, "edge-gemma-engine")

    # ---- any thread ----------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Have a sequence computed. Raises ForkError, and EdgeGemmaError where the engine is closed."""
        self.check_open()
        self._check_thread()
        self._do(lambda: self._admit(sequence))

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises, run by the engine's thread between two steps."""
        self.check_open()
        self._check_thread()
        future: Future[T] = Future()

        def command() -> None:
            try:
                self.check_open()
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._do(command)
        return future.result()

    def call_with_room(self, function: Callable[[], T]) -> T:
        """`call` for what takes pages: where there are too few, prefixes that are only kept are dropped first."""
        return self.call(lambda: self._with_room(function))

    def keep(self, tokens: Ids[int], table: Table) -> None:
        """Have others begin with a sequence that somebody has, as far as there is room for prefixes."""
        self.call(lambda: self._keep(tokens, table))
        self.call(self._trim)

    def _do(self, command: Command) -> None:
        """Have the engine's thread carry out a command; nobody waits for one that came when that had ended."""
        self._commands.put(command)
        if self._over:
            self._carry_out()

    def cancel(self, *sequences: Sequence) -> None:
        """End sequences, or all there are; a step that is computed for these alone is broken off."""
        if os.getpid() != self._process:
            return
        for sequence in sequences:
            sequence.cancelled = True
        if (computed := self._in_step) and all(s.cancelled for s in computed):
            self._runner.cancel()
        self._commands.put(_nothing)

    def cancel_all(self) -> None:
        """End all sequences submitted so far."""
        if os.getpid() != self._process:
            return
        self._commands.put(self._cancel_all)
        self._runner.cancel()

    def later(self, command: Command) -> None:
        """Have the engine's thread do something between two steps, such as to give back pages; not when it is closed.

        From any thread, and in the midst of anything.
        """

        def do() -> None:
            command()
            self._trim()  # pages may be the cache's alone now

        if os.getpid() == self._process and not self._closing:
            self._commands.put(do)

    def wake(self) -> None:
        """A reader has room again."""
        self._commands.put(_nothing)

    def stats(self) -> Stats:
        """A copy of what it has done."""
        return self.call(self._current_stats)

    def check_open(self) -> None:
        """Raise ForkError or EdgeGemmaError where there is no engine any more."""
        self.check_process()
        if self._closing:
            raise EdgeGemmaError("the model is closed")

    def check_process(self) -> None:
        """Raise ForkError in a child that was forked after the engine was made."""
        if os.getpid() != self._process:
            raise ForkError("this process was forked after the model was opened; open it again, or use spawn")

    def _check_thread(self) -> None:
        """Whoever waits for the engine in its own thread, as a finalizer or a log handler may, would do so for ever."""
        if threading.get_ident() == self._thread.ident:
            raise EdgeGemmaError("the model was called by its own thread, from a finalizer or a log handler")

    def close(self) -> None:
        """End all sequences and the thread. Idempotent, from any thread; in a forked child there is nothing to do.

        It takes as long as a step needs to be broken off, a few milliseconds.
        """
        if os.getpid() != self._process:
            return
        self._closing = True
        self._runner.cancel()
        self._commands.put(_nothing)
        if self._thread.ident != threading.get_ident():  # where it has collected the garbage that the model was in
            self._thread.join()

    # ---- the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while not self._closing:
                self._turn()
        except BaseException as caught:  # no sequence's fault: nobody may wait for ever because of it
            log.exception("the engine has failed")
            error = caught
        self._closing = True
        try:
            self._end_all(error)
        finally:
            self._over = True
            self._carry_out()

    def _end_all(self, error: BaseException | None) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            sequence.end(error, None if error else "cancelled")
        self._settle()
        self._cache.clear()
        self._runner.close()
        if self._draft is not None:
            self._draft.close()

    def _turn(self) -> None:
        """Hear what is asked for, then compute one step, or wait."""
        self._carry_out()
        self._end_cancelled()
        for sequence in self._scheduler.start():
            self._begin(sequence)
        step = self._scheduler.next_step()
        if step:
            self._compute(step)
            self._settle()
        else:
            self._wait()

    def _carry_out(self) -> None:
        """The commands so far."""
        with suppress(Empty):
            while True:
                self._commands.get_nowait()()

    def _wait(self) -> None:
        """Until there is a command, or the first deadline."""
        scheduler = self._scheduler
        first = min((s.deadline for s in (*scheduler.running, *scheduler.waiting)), default=math.inf)
        seconds = min(max(0.0, first - time.monotonic()), LONGEST_WAIT)
        with suppress(Empty):
            self._commands.get(timeout=None if first == math.inf else seconds)()

    def _admit(self, sequence: Sequence) -> None:
        if self._closing:
            sequence.end(EdgeGemmaError("the model is closed"))
        else:
            self._scheduler.add(sequence)

    def _cancel_all(self) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            sequence.cancelled = True

    def _end_cancelled(self) -> None:
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.cancelled:
                sequence.end(reason="cancelled")
            elif expired(sequence):
                sequence.end(reason="deadline")
        self._settle()

    def _settle(self) -> None:
        """Part with the sequences that have ended."""
        ended = self._scheduler.remove_ended()
        for sequence in ended:
            if sequence.table is not None:
                if not sequence.failed and sequence.cacheable:
                    self._keep(sequence.tokens, sequence.table)
                if not sequence.keeps_table:
                    _release(sequence)
        if ended:
            self._trim()

    def _begin(self, sequence: Sequence) -> None:
        try:
            sequence.prepare()
            cached = sequence.computed
            if sequence.table is None:  # else it is the choice of another, or somebody's own
                table = self._cache.resume(sequence.tokens) if sequence.cacheable else None
                sequence.table = table or self._runner.new_table()
                self._stats.cached_tokens += sequence.computed - cached
            sequence.begin(sequence.computed)
        except Exception as error:  # its own
            sequence.end(error)

    def _compute(self, step: list[Work]) -> None:
        """Run a step and hand out its logits."""
        self._propose(step)
        rows = [_rows(work) for work in step]
        self._in_step = [work.sequence for work in step]
        if all(sequence.cancelled for sequence in self._in_step):  # before others could see that they are in it
            self._in_step = []
            return
        start = time.perf_counter()
        try:
            logits = self._runner.run(rows)
        except Cancelled:  # others may have been in it, too: their rows are computed again
            _drop_proposals(step)
            return
        except MemoryBudgetError as error:
            self._make_room(step, error)
            return
        except BaseException as error:
            self._fail(step, error)
            return
        finally:
            self._in_step = []
        seconds = time.perf_counter() - start
        self._scheduler.note(step, seconds)
        self._stats.prompt_tokens += sum(_of_prompt(work) for work in step)
        if all(work.count == 1 for work in step):
            self.step_times.note(sum(len(row.tokens) for row in rows), seconds)
        self._stats.steps += 1
        self._hand_out(step, rows, logits)

    def _propose(self, step: list[Work]) -> None:
        """Where nobody else is computed for, a step may as well have rows that are only likely to be wanted."""
        if len(step) == 1 and isinstance(sequence := step[0].sequence, Generation):
            sequence.propose(self._runner.chunk - 1)

    def _make_room(self, step: list[Work], error: MemoryBudgetError) -> None:
        """Drop what is only kept, then what waits, else have one that runs wait; it is computed again later."""
        if self._cache.evict():
            return
        waiting = next((s for s in self._scheduler.waiting if s.table is not None and not s.keeps_table), None)
        spared = waiting or self._scheduler.put_back()
        if spared is not None:
            _release(spared)
        elif not _drop_proposals(step, for_good=True):
            step[-1].sequence.end(error)

    def _with_room(self, function: Callable[[], T]) -> T:
        while True:
            try:
                return function()
            except MemoryBudgetError:
                if not self._cache.evict():
                    raise

    def _fail(self, step: list[Work], error: BaseException) -> None:
        if not isinstance(error, EdgeGemmaError):
            log.error("a step has failed", exc_info=error)
        for work in step:
            work.sequence.end(error)

    def _hand_out(self, step: list[Work], rows: list[SequenceRows], logits: Logits) -> None:
        at, maxima = 0, self._runner.maxima
        for work, row in zip(step, rows, strict=True):
            sequence, part = work.sequence, slice(at, at + row.wanted)
            at += row.wanted
            try:
                self._advance(sequence, logits[part], None if maxima is None else maxima[part])
            except Exception as error:  # its own: a logit that is not finite, a stop string's
                sequence.end(error)

    def _advance(self, sequence: Sequence, logits: Logits, maxima: Logits | None) -> None:
        if not len(logits):
            sequence.read()
            return
        length = len(sequence.tokens)
        if isinstance(sequence, Generation) and length == sequence.prompt_length:
            if sequence.cacheable and sequence.table is not None:
                self._keep(sequence.tokens, sequence.table)
                self._trim()
            self._start_choices(sequence)
        sequence.take(logits, maxima)
        self._stats.completion_tokens += len(sequence.tokens) - length

    def _start_choices(self, sequence: Sequence) -> None:
        """Other choices of the same prompt go on from here, each with a table of its own."""
        assert isinstance(sequence, Generation)
        for choice in sequence.choices:
            assert sequence.table is not None
            choice.table = sequence.table.fork()
            choice.table.truncate(sequence.prompt_length - 1)
            self._scheduler.add(choice)
        sequence.choices = []

    def _keep(self, tokens: Ids[int], table: Table) -> None:
        if self._cache_bytes:
            self._cache.keep(tokens, table)

    def _trim(self) -> None:
        """Keep no more than `prefix_cache` bytes that nobody else holds."""
        pool = self._runner.pool
        while (
            pool.bytes_in_use > self._cache_bytes
            and pool.bytes_only_in(self._cache.tables) > self._cache_bytes
            and self._cache.evict()
        ):
            pass

    def _current_stats(self) -> Stats:
        stats = Stats(**vars(self._stats))
        stats.running, stats.waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        stats.checkpoints, stats.page_bytes = len(self._cache), self._runner.pool.bytes_in_use
        return stats


def _rows(work: Work) -> SequenceRows:
    sequence, computed = work.sequence, work.sequence.computed
    tokens = sequence.tokens[computed : computed + work.count]
    wanted = sequence.wanted(work.count)
    if isinstance(sequence, Generation):
        tokens = [*tokens, *sequence.proposal]
    assert sequence.table is not None
    return SequenceRows(cast(PageTable, sequence.table), np.array(tokens, np.int64), wanted)


def _of_prompt(work: Work) -> int:
    """Tokens of it that are not the engine's own; to be asked when they are computed."""
    given = work.sequence.prompt_length if isinstance(work.sequence, Generation) else len(work.sequence.tokens)
    return max(0, min(work.count, work.count + given - work.sequence.computed))


def _release(sequence: Sequence) -> None:
    assert sequence.table is not None
    sequence.table.release()
    sequence.table = None


def _drop_proposals(step: list[Work], *, for_good: bool = False) -> bool:
    """Whether there were any. The next step may have others beside it, and no room for them."""
    proposing = [work.sequence for work in step if isinstance(work.sequence, Generation) and work.sequence.proposal]
    for sequence in proposing:
        sequence.proposal = []
        if for_good:
            sequence.propose_no_more()
    return bool(proposing)


def _nothing() -> None:
    """Wakes the engine."""
