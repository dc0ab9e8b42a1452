"""Speed of a model as llama-bench measures it: no tokenizing and no sampling. Knows no terminal.

A prompt test times one prefill of `n_prompt` tokens, a generation test `n_gen` steps of one token, both after `n_depth`
tokens of context. Each runs once untimed and then `repeats` times, every time from an empty cache.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edge_gemma import __version__
from edge_gemma.cores import default_threads
from edge_gemma.engine.memory_plan import KvType
from edge_gemma.engine.runner import Runner
from edge_gemma.kernels import isa
from edge_gemma.measure.info import describe
from edge_gemma.measure.one_sequence import OneSequence
from edge_gemma.models.architecture import Config
from edge_gemma.progress import Progress

SEED = 0
LIMIT = 2**22
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Test:
    """What is timed: n_prompt tokens at once, or n_gen one by one (the other is 0), after n_depth."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def tokens(self) -> int:
        """Timed tokens."""
        return self.n_prompt + self.n_gen

    def __str__(self) -> str:
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")


def plan_tests(prompts: Sequence[int], generations: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """Every prompt and generation length at every depth; a length of 0 is left out. Raises ValueError."""
    for name, values in (("-p", prompts), ("-n", generations), ("-d", depths)):
        for value in values:
            if not 0 <= value <= LIMIT:
                raise ValueError(f"{name}: {value} is outside 0..{LIMIT}")
    sizes = [(p, 0) for p in prompts if p] + [(0, n) for n in generations if n]
    tests = [Test(p, n, d) for d in depths for p, n in sizes]
    if not tests:
        raise ValueError("nothing to measure: all lengths of -p and -n are 0")
    return tests


def bench(
    path: str | os.PathLike[str],
    tests: Sequence[Test],
    *,
    threads: Sequence[int] = (),
    repeats: int = 5,
    kv_type: KvType = "f16",
    kernel_progress: Progress | None = None,
    notice: Notice | None = None,
) -> Iterator[dict[str, Any]]:
    """Run `tests` with each number of threads; one row of llama-bench's fields for each, as soon as it is known.

    `notice` is told what is being run. Raises what opening a model raises, and ValueError.
    """
    if repeats < 1:
        raise ValueError(f"-r: {repeats} is not at least 1")
    context = max(test.n_depth + test.tokens for test in tests)
    constant = _model_fields(path, context) | {"build_version": __version__, "cpu_info": cpu_info(), "backends": "CPU"}
    for count in threads or [default_threads()]:
        with open_engine(path, context, count, kv_type, kernel_progress) as engine:
            for test in tests:
                fields = {
                    "isa": isa.current().name,
                    "n_batch": engine.chunk,
                    "n_ubatch": engine.chunk,
                    "n_threads": count,
                    "type_k": kv_type,
                    "type_v": kv_type,
                    **asdict(test),
                    "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
                yield constant | fields | summary(test.tokens, _samples(engine, test, repeats, notice))


def summary(tokens: int, samples_ns: Sequence[int]) -> dict[str, Any]:
    """llama-bench's statistics of the times of one test; the deviation is the sample's, 0 for one."""
    speeds = [1e9 * tokens / ns for ns in samples_ns]
    return {
        "avg_ns": round(statistics.mean(samples_ns)),
        "stddev_ns": round(_deviation(samples_ns)),
        "avg_ts": statistics.mean(speeds),
        "stddev_ts": _deviation(speeds),
        "samples_ns": list(samples_ns),
        "samples_ts": speeds,
    }


def cpu_info() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _samples(engine: OneSequence, test: Test, repeats: int, notice: Notice | None) -> list[int]:
    """Nanoseconds of each repetition, after an untimed one."""
    tokens = _random_tokens(engine.config, test.n_depth + test.tokens)
    samples = []
    for repeat in range(-1, repeats):
        if notice:
            notice(f"{test}, {engine.threads} threads: " + (f"{repeat + 1} of {repeats}" if repeat >= 0 else "warm-up"))
        engine.reset()
        if test.n_depth:
            engine.prefill(tokens[: test.n_depth])
        timed = tokens[test.n_depth :]
        start = time.perf_counter_ns()
        _work(engine, test, timed)
        samples.append(time.perf_counter_ns() - start)
    return samples[1:]


def _work(engine: OneSequence, test: Test, tokens: list[int]) -> None:
    if test.n_prompt:
        engine.prefill(tokens)
    else:
        for token in tokens:
            engine.decode(token)


def _random_tokens(config: Config, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(SEED).integers(0, config.vocab_size, count)]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _model_fields(path: str | os.PathLike[str], context: int) -> dict[str, Any]:
    info = describe(path, context)
    parameters = info["parameters"]
    size = f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
    return {
        "model_filename": info["path"],
        "model_type": f"{info['architecture']} {size} {_main_type(info['types'])}",
        "model_size": sum(kind["bytes"] for kind in info["types"].values()),
        "model_n_params": parameters,
    }


def _main_type(types: dict[str, dict[str, int]]) -> str:
    """The type of most tensors that are not vectors, which are F32 in every file."""
    matrices = {name: kind for name, kind in types.items() if name != "F32"} or types
    return max(matrices, key=lambda name: matrices[name]["tensors"])


@contextmanager
def open_engine(
    path: str | os.PathLike[str],
    context: int,
    threads: int,
    kv_type: KvType = "f16",
    progress: Progress | None = None,
) -> Iterator[OneSequence]:
    """The model in `path`, ready for steps, with the chunk that `Gemma` takes; closed at the end. Raises as `Gemma`."""
    if not 1 <= threads <= 256:
        raise ValueError(f"-t: {threads} is outside 1..256")
    runner = Runner(path, context=context, threads=threads, kv_type=kv_type, progress=progress)
    try:
        yield OneSequence(runner)
    finally:
        runner.close()
