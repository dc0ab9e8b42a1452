"""Measure which way of asking for weights is fastest here. All ways give the same bits, so the clock may choose.

A product of one row reads a matrix that is larger than all caches, by one strategy after the other, round after round,
on as many threads as will run. The default stays unless another is faster by 3% in most rounds: a busy machine cannot
talk it into nonsense. Knows no model and no file: it is told which matrices there are.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.cores import available_memory
from edge_gemma.formats import FORMATS

from .. import caches
from .. import operations as ops
from ..jit.library import Progress, shared
from ..layout import LANES, LINE, activation_bytes
from ..operations import Kernel
from ..threads.pool import ThreadPool
from .choices import Tuning, is_enabled, load, save
from .strategies import CONTENDERS, class_of, default

log = logging.getLogger(__name__)

SECONDS = 1.0
"""Of measuring at a first start, all classes together."""
LEAST_ROUNDS = 8
WORTH, MOST_ROUNDS = 1.03, 0.6
"""Another strategy is taken if it is this much faster than the default in this share of the rounds."""
UNDISTURBED = 0.9
"""Of the processor time that the threads ask for, what they get at least where nothing else runs. Waiting threads look
again and again, so with an idle machine it is all of it; one busy program on two cores leaves 0.75."""
PATIENCE = 3
"""Starts at which measuring was disturbed, after which the defaults stay."""
LEAST_SHARE = 0.25
"""Of a model's bytes, in matrices of one format and size, for its class to be measured at a first start: each takes two
kernels more to compile, 1.3 s on two cores."""
LEAST_BYTES, MOST_BYTES = 64 << 20, 256 << 20
"""Of the memory that is read: twice the largest cache, within these bounds."""
FILL = 0x11
"""Of all memory: scales and activations are ordinary numbers then, whatever the format."""


@dataclass(frozen=True)
class Matrix:
    """One kind of matrices of a model: a quantized format, bytes of a row, and bytes of all of them together."""

    format: str
    row_bytes: int
    size: int


@dataclass(frozen=True)
class Measurement:
    """The rounds of one class: strategy -> bytes per second in each round."""

    matrix_class: str
    matrix: Matrix
    rates: dict[str, list[float]]

    @property
    def default(self) -> str:
        """What is used where nothing is measured."""
        return default(self.matrix_class)

    def median(self, strategy: str) -> float:
        """Bytes per second."""
        return statistics.median(self.rates[strategy])

    def wins(self, strategy: str) -> float:
        """The share of rounds in which the strategy was faster than the default by what makes a change worth it."""
        pairs = list(zip(self.rates[strategy], self.rates[self.default], strict=True))
        return sum(one >= WORTH * usual for one, usual in pairs) / len(pairs)

    @property
    def best(self) -> str:
        """The fastest of those that win most rounds; else the default."""
        winners = [name for name in self.rates if self.wins(name) >= MOST_ROUNDS]
        return max(winners, key=self.median, default=self.default)


@dataclass(frozen=True)
class Result:
    """All classes measured. `received`: the share of the processor time asked for that the threads got."""

    measurements: list[Measurement]
    received: float
    rounds: int

    @property
    def disturbed(self) -> bool:
        """Whether other programs took part, or there were too few rounds to say anything."""
        return self.received < UNDISTURBED or self.rounds < LEAST_ROUNDS

    @property
    def best(self) -> dict[str, str]:
        """Class -> strategy."""
        return {one.matrix_class: one.best for one in self.measurements}


def by_class(matrices: Iterable[Matrix]) -> dict[str, Matrix]:
    """Of each class the matrices that are read most of."""
    sums: dict[tuple[str, int], int] = {}
    for one in matrices:
        sums[one.format, one.row_bytes] = sums.get((one.format, one.row_bytes), 0) + one.size
    largest: dict[str, Matrix] = {}
    for (name, row_bytes), size in sums.items():
        matrix_class = class_of(name, row_bytes)
        if matrix_class not in largest or size > largest[matrix_class].size:
            largest[matrix_class] = Matrix(name, row_bytes, size)
    return largest


def tune_once(
    matrices: Iterable[Matrix], threads: int, also: Iterable[Kernel], progress: Progress | None = None
) -> None:
    """Measure and store what this machine lacks for most of a model's `matrices`. Does nothing where all is known,
    tuning is off, nothing can be stored, the matrices are small, or other programs disturbed it PATIENCE times.

    `also`: kernels that are needed anyway, to be compiled together with those to try.
    """
    matrices = list(matrices)
    if not is_enabled() or shared().folder is None or sum(one.size for one in matrices) < LEAST_BYTES:
        return
    known, classes, total = load(), by_class(matrices), sum(one.size for one in matrices)
    lacking = {n: m for n, m in classes.items() if n not in known.measured and m.size >= LEAST_SHARE * total}
    if not lacking or known.disturbed >= PATIENCE or not _has_room():
        return
    result = measure(lacking, CONTENDERS, threads, SECONDS, also, progress)
    if result.disturbed:
        log.info("strategies stay at their defaults: the machine was busy (%.2f)", result.received)
        save(Tuning(known.measured, known.disturbed + 1))
    else:
        save(Tuning({**known.measured, **result.best}, 0))


def measure(
    classes: dict[str, Matrix],
    strategies: Sequence[str],
    threads: int,
    seconds: float,
    also: Iterable[Kernel] = (),
    progress: Progress | None = None,
) -> Result:
    """Rounds of every strategy, and the default, on every class, for so many seconds, and LEAST_ROUNDS / 2 at least.

    run each trial once, unmeasured: pages of code and results are touched, threads are awake
    for each round:
        begin with another trial than in the round before
        for each trial: one product with all of the memory, and its rate

    Strategies are compared within a round only, as a machine's speed drifts by more than what they differ by. The
    memory is so large that a cache has little of it left for the next. Whether other programs took part shows in the
    processor time that the threads got.
    """
    trials = [_Trial(name, m, s) for name, m in classes.items() for s in dict.fromkeys((default(name), *strategies))]
    addresses = shared().load([*(trial.kernel for trial in trials), *also], progress)
    memory = _filled(_buffer_bytes())
    for trial in trials:
        trial.prepare(addresses[trial.kernel], memory)
    with closing(ThreadPool(threads)) as pool:
        step = _step()
        for trial in trials:
            trial.run(pool, step)
        wall, used, rounds = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < wall + seconds or rounds < LEAST_ROUNDS // 2:
            turn = rounds % len(trials)
            for trial in trials[turn:] + trials[:turn]:
                trial.rates.append(trial.run(pool, step))
            rounds += 1
        received = (time.process_time() - used) / (threads * (time.perf_counter() - wall))
    measurements = [
        Measurement(name, matrix, {t.strategy: t.rates for t in trials if t.matrix_class == name})
        for name, matrix in classes.items()
    ]
    return Result(measurements, received, rounds)


class _Trial:
    """One strategy on one class's matrix."""

    def __init__(self, matrix_class: str, matrix: Matrix, strategy: str) -> None:
        self.matrix_class, self.matrix, self.strategy = matrix_class, matrix, strategy
        self.kernel = Kernel("ops.matvec", matrix.format, strategy)
        self.rates: list[float] = []

    def prepare(self, address: int, memory: NDArray[np.uint8]) -> None:
        """Write the table of one product with all of `memory` as its matrix."""
        layout = FORMATS[self.matrix.format]
        columns = self.matrix.row_bytes // layout.nbytes * layout.block
        rows = (memory.size - 2 * LANES * self.matrix.row_bytes) // self.matrix.row_bytes // LANES * LANES
        self._x, self._y = _filled(activation_bytes(columns)), _filled(4 * rows)
        self._table = _filled(8 * ops.ROW_WORDS, 0).view(np.int64).reshape(1, ops.ROW_WORDS)
        self._table[0, ops.KERNEL] = address
        self._table[0, list(ops.MATMUL.slots)] = (
            *(memory.ctypes.data, self.matrix.row_bytes, rows, columns),
            *(self._x.ctypes.data, 0, self._y.ctypes.data, 0),
        )
        self._bytes = rows * self.matrix.row_bytes

    def run(self, pool: ThreadPool, step: NDArray[np.int64]) -> float:
        """Bytes per second of one pass."""
        start = time.perf_counter()
        pool.run(self._table, step)
        return self._bytes / (time.perf_counter() - start)


def _step() -> NDArray[np.int64]:
    """The words of a step of one row."""
    words = _filled(8 * ops.STEP_WORDS, 0).view(np.int64)
    words[ops.STEP_ROWS] = 1
    return words


def _filled(size: int, value: int = FILL) -> NDArray[np.uint8]:
    """Resident memory that begins a cache line."""
    memory = np.full(size + LINE, value, np.uint8)
    return memory[-memory.ctypes.data % LINE :][:size]


def _buffer_bytes() -> int:
    return min(max(2 * caches.sizes().last, LEAST_BYTES), MOST_BYTES)


def _has_room() -> bool:
    return available_memory() >= 4 * _buffer_bytes()
