"""Where a step's microseconds go: the time of each kind of operation, measured while the program runs.

One decode step and one chunk of a prompt are run with timestamps around every operation, and by turns with two around
the whole; what the two differ by is the barriers between operations, and the overlap of operations without one. What
happens outside the program (waking the threads, sampling, text, Python) is measured in a streamed generation. Knows no
terminal.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_gemma import __version__
from edge_gemma.cores import default_threads
from edge_gemma.engine.answer import Delta, Writer
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.grouped_logits import Logits
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.memory_plan import KvType
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import Generation, PromptRead
from edge_gemma.graph.cache import PageTable
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels import isa
from edge_gemma.measure.info import describe
from edge_gemma.measure.profile_parts import Part, gather, part
from edge_gemma.measure.speed import cpu_info
from edge_gemma.measure.timestamps import Run, TimestampedRunner
from edge_gemma.progress import Progress
from edge_gemma.text.detokenizer import Detokenizer
from edge_gemma.text.stop_strings import StopStrings
from edge_gemma.text.tokenizer import Tokenizer

SEED = 0
LIMIT = 2**22
Notice = Callable[[str], None]
Kind = Literal["decode", "prefill"]


@dataclass(frozen=True)
class StepProfile:
    """A step of `rows` rows, the first at `position`; `whole_us` is the program's time with no timestamps inside."""

    kind: Kind
    rows: int
    position: int
    parts: tuple[Part, ...]
    whole_us: float

    @property
    def sum_us(self) -> float:
        """Of all parts: `whole_us`, and a barrier after each operation."""
        return sum(part.us for part in self.parts)


@dataclass(frozen=True)
class Outside:
    """Microseconds for each of `steps` tokens of a streamed generation with the default sampling, medians.

    program: in the kernels; threads: waking them and hearing of their end; sampling; detokenizing: with stop strings;
    python: all the rest between two tokens.
    """

    steps: int
    program_us: float
    threads_us: float
    sampling_us: float
    detokenizing_us: float
    python_us: float

    @property
    def share(self) -> float:
        """Of sampling, detokenizing, Python and waking threads in a token's time."""
        outside = self.threads_us + self.sampling_us + self.detokenizing_us + self.python_us
        return outside / (outside + self.program_us)


@dataclass(frozen=True)
class Profile:
    """A decode step and the loop around it, and a chunk of a prompt, where asked for; `about`: model and machine."""

    about: dict[str, Any]
    decode: StepProfile | None
    outside: Outside | None
    prefill: StepProfile | None


def profile(
    path: str | os.PathLike[str],
    *,
    n_prompt: int = 512,
    n_gen: int = 128,
    n_depth: int = 0,
    threads: int | None = None,
    repeats: int = 5,
    kv_type: KvType = "f16",
    kernel_progress: Progress | None = None,
    notice: Notice | None = None,
) -> Profile:
    """Profile the model in `path`, after `n_depth` tokens of context.

    n_prompt: rows of the chunk, at most the model's own chunk; 0 for none. n_gen: tokens of the generation that shows
    what is outside the program; 0 for neither that nor a decode step. repeats: of each step, after one that does not
    count. `notice` is told what is being run. Raises what opening a model raises, and ValueError.
    """
    _check(n_prompt, n_gen, n_depth, repeats)
    count = threads or default_threads()
    tell = notice or (lambda _text: None)
    with _open(path, n_depth + 1 + max(n_prompt, n_gen), count, kv_type, kernel_progress) as (runner, tokenizer):
        rows = min(n_prompt, runner.chunk)
        ids = np.random.default_rng(SEED).integers(0, runner.config.vocab_size, n_depth + rows + 1)
        tell(f"{n_depth} tokens of context, and generation of {n_gen}")
        outside = _outside(runner, tokenizer, ids[: max(n_depth, 1)].tolist(), n_gen) if n_gen else None
        before = _read(runner, ids[:n_depth])
        decode = prefill = None
        if n_gen:
            tell("a decode step")
            decode = _step(runner, "decode", ids[n_depth : n_depth + 1], before, repeats)
        if n_prompt:
            tell(f"a chunk of {rows} tokens")
            prefill = _step(runner, "prefill", ids[n_depth : n_depth + rows], before, repeats)
    about = _about(path, n_depth=n_depth, n_threads=count, repetitions=repeats, type_k=kv_type, type_v=kv_type)
    return Profile(about, decode, outside, prefill)


def as_dict(result: Profile) -> dict[str, Any]:
    """For JSON: the fields of the classes above, times in microseconds, and what follows from them."""
    steps = {"decode": result.decode, "prefill": result.prefill}
    return (
        result.about
        | {name: step and _step_dict(step) for name, step in steps.items()}
        | {"outside": result.outside and asdict(result.outside) | {"share": result.outside.share}}
    )


def _step_dict(step: StepProfile) -> dict[str, Any]:
    parts = [
        asdict(p) | {"share": p.us / step.sum_us, "gb_per_s": p.gb_per_s, "gmac_per_s": p.gmac_per_s}
        for p in step.parts
    ]
    return asdict(step) | {"sum_us": step.sum_us, "parts": parts}


def _about(path: str | os.PathLike[str], **settings: Any) -> dict[str, Any]:
    info = describe(path)
    facts = {
        "model_filename": info["path"],
        "architecture": info["architecture"],
        "model_size": sum(kind["bytes"] for kind in info["types"].values()),
        "model_n_params": info["parameters"],
    }
    machine = {
        "isa": isa.current().name,
        "strategies": info["strategies"],
        "cpu_info": cpu_info(),
        "build_version": __version__,
    }
    return facts | machine | settings


def _check(n_prompt: int, n_gen: int, n_depth: int, repeats: int) -> None:
    for name, value, low in (("-p", n_prompt, 0), ("-n", n_gen, 0), ("-d", n_depth, 0), ("-r", repeats, 1)):
        if not low <= value <= LIMIT:
            raise ValueError(f"{name}: {value} is outside {low}..{LIMIT}")
    if not n_prompt and not n_gen:
        raise ValueError("nothing to measure: the lengths of -p and -n are 0")


@contextmanager
def _open(
    path: str | os.PathLike[str], context: int, threads: int, kv_type: KvType, progress: Progress | None
) -> Iterator[tuple[TimestampedRunner, Tokenizer]]:
    if not 1 <= threads <= 256:
        raise ValueError(f"-t: {threads} is outside 1..256")
    runner = TimestampedRunner(path, context=context, threads=threads, kv_type=kv_type, sequences=2, progress=progress)
    try:
        runner.check_continues()
        yield runner, Tokenizer.from_gguf(runner.file)
    finally:
        runner.close()


# ---- inside the program ------------------------------------------------------------------------------------------


def _read(runner: TimestampedRunner, ids: NDArray[np.int64]) -> PageTable:
    """A sequence of `ids`."""
    table = runner.new_table()
    for start in range(0, len(ids), runner.chunk):
        runner.run([SequenceRows(table, ids[start : start + runner.chunk])])
    return table


def _step(
    runner: TimestampedRunner, kind: Kind, ids: NDArray[np.int64], before: PageTable, repeats: int
) -> StepProfile:
    """One step of `ids`, again and again after `before`, whole and operation by operation by turns."""
    timed, whole = [], []
    for _ in range(repeats + 1):
        timed.append(_run(runner, kind, ids, before, every=True))
        whole.append(_run(runner, kind, ids, before, every=False))
    us = runner.nanoseconds_per_tick() / 1e3
    times = us * np.array([np.diff(run.ticks) for run in timed[1:]])  # (repeats, rows of the table)
    middle, best = np.median(times, axis=0), times.min(axis=0)
    ran = runner.recording(len(ids))
    rows = zip(ran.recorded, ran.arguments, middle.tolist(), best.tolist(), strict=False)
    parts = [part(*row, len(ids), before.length) for row in rows]
    whole_us = us * statistics.median(run.total for run in whole[1:])
    return StepProfile(kind, len(ids), before.length, gather(parts), whole_us)


def _run(runner: TimestampedRunner, kind: Kind, ids: NDArray[np.int64], before: PageTable, *, every: bool) -> Run:
    """The run of one step: of a prompt's chunk its layers, without logits."""
    runner.every, table = every, before.fork()
    runner.run([SequenceRows(table, ids, 1 if kind == "decode" else 0)])
    table.release()
    runner.every = False
    return runner.runs[-1]


# ---- outside the program -----------------------------------------------------------------------------------------


class _TimedSampler(Sampler):
    """Keeps when each call began and ended."""

    def __init__(self, params: SamplingParams) -> None:
        super().__init__(params)
        self.times: list[tuple[int, int]] = []

    def sample(self, logits: Logits, maxima: Logits | None, history: Sequence[int], position: int) -> int:
        start = time.perf_counter_ns()
        token = super().sample(logits, maxima, history, position)
        self.times.append((start, time.perf_counter_ns()))
        return token


class _Lent:
    """A runner that stays open when an engine has ended."""

    def __init__(self, runner: TimestampedRunner) -> None:
        self.chunk, self.context, self.pool = runner.chunk, runner.context, runner.pool
        self.maxima = runner.maxima
        self.new_table, self.cancel, self._runner = runner.new_table, runner.cancel, runner

    def run(self, batch: Sequence[SequenceRows]) -> Logits:
        """As of the runner."""
        logits = self._runner.run(batch)
        self.maxima = self._runner.maxima
        return logits

    def close(self) -> None:
        """Its owner does that; forget how the engine ended what ran."""
        self._runner.ready()


def _outside(runner: TimestampedRunner, tokenizer: Tokenizer, prompt: list[int], steps: int) -> Outside:
    """Stream `steps` tokens after `prompt` as `Gemma` does."""
    tokenizer.eog_ids = frozenset()  # the answer must not end before it is long enough
    sampler = _TimedSampler(SamplingParams(seed=SEED))
    engine = Engine(_Lent(runner), slots=1, prefix_cache=0)
    channel: Channel[PromptRead | Delta] = Channel(2 * steps + len(prompt) + 2, engine.wake)
    engine.submit(Generation(prompt, Writer(tokenizer, prompt, steps + 1), sampler, channel))
    written = [token for item in channel if isinstance(item, Delta) for token in item.token_ids]
    engine.close()
    ns = runner.nanoseconds_per_tick()
    runs = runner.runs[-steps:]
    between = [b[0] - a[1] for a, b in zip(sampler.times, sampler.times[1:], strict=False)]
    rest = [gap - (run.ended - run.begun) - run.arranging for gap, run in zip(between, runs, strict=True)]
    detokenizing = _detokenizing(tokenizer, written)
    return Outside(
        steps,
        program_us=ns * statistics.median(run.total for run in runs) / 1e3,
        threads_us=statistics.median(run.ended - run.begun - ns * run.total for run in runs) / 1e3,
        sampling_us=statistics.median(end - start for start, end in sampler.times) / 1e3,
        detokenizing_us=detokenizing / 1e3,
        python_us=max(0.0, statistics.median(rest) - detokenizing) / 1e3,
    )


def _detokenizing(tokenizer: Tokenizer, ids: Sequence[int]) -> float:
    """Nanoseconds for a token, the median: it is too short to be timed inside the loop."""
    detokenizer, stops, times = Detokenizer(tokenizer), StopStrings(()), []
    for token in ids:
        start = time.perf_counter_ns()
        stops.push(detokenizer.push(token))
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)
