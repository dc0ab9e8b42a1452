"""The operations a program may consist of: names, arguments and the kernels that do them, as data.

Knows no Numba and no model: recording a program needs neither. A program is a table of rows of ROW_WORDS 64-bit words,

    | kernel | barrier | arguments ...                                              | counter |  ...
      0        1         2                                                            24

`kernel` is the address of what does the operation in steps of the program's regime; `barrier` says that all threads
wait for each other before the operation, and `counter` hands out its work items (alone on its cache line).
A step is described by `STEP_WORDS` words; those that threads write while others read have cache lines of their own.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

ROW_WORDS = 32
KERNEL, BARRIER, FIRST_ARGUMENT, COUNTER = 0, 1, 2, 24
FEW_ROWS = 16


class Regime(Enum):
    """How many rows a step has: 1, 2..FEW_ROWS, or more. Each has kernels, and so programs, of its own."""

    ONE = 1
    FEW = 2
    MANY = FEW_ROWS + 1

    @classmethod
    def of(cls, rows: int) -> Regime:
        """That of a step of `rows` rows, at least 1."""
        return cls.ONE if rows == 1 else cls.FEW if rows <= FEW_ROWS else cls.MANY

    @classmethod
    def up_to(cls, chunk: int) -> list[Regime]:
        """Those of steps of at most `chunk` rows."""
        return [regime for regime in cls if regime.value <= chunk]

    def most_rows(self, chunk: int) -> int:
        """Of a step of this regime, where no step has more than `chunk`."""
        return min(chunk, {Regime.ONE: 1, Regime.FEW: FEW_ROWS}.get(self, chunk))


STEP_WORDS = 72
STEP_ROWS = 0  # rows of this step
STEP_THREADS = 1
STEP_TOKENS = 2  # address: int64 token id of each row
STEP_POSITIONS = 3  # address: int64 position of each row in its sequence
STEP_TABLES = 4  # address: int64 of each row, the address of its sequence's table, as drawn in ops.attention
STEP_MASKS = 16  # null, or address: int64 address of the bit mask of each row of logits, 0 for none
STEP_TILES = 5  # address: pairs of int64 (first row, rows): neighbours of one sequence, at most layout.QUERY_ROWS
STEP_N_TILES = 6
STEP_LASTS = 7  # address: int64 of each row, the last position that its sequence has in this step
STEP_SCRATCH = 9  # address: scratch memory of thread 0
STEP_SCRATCH_BYTES = 10  # of each thread
# addresses, one for each rotary embedding: float32 rows of cosines, then sines, (rows, dims) where the halves of a head
# are pairs, (rows, 2 * layout.whole_head(dims)) where neighbours are
STEP_ANGLES = 12
MOST_ROPES = 4
STEP_ARRIVED = 24  # threads waiting at the barrier
STEP_GENERATION = 32  # barriers passed
STEP_CANCEL = 40  # set from outside: stop at the next barrier
STEP_STOPPED = 48  # set by the last thread at a barrier: all leave
STEP_LOST = 56  # ticks that threads have waited at barriers, beyond what a barrier takes

POOL_WORDS = 8  # what is said to a pool, then WORKER_WORDS for each thread, on cache lines of their own
POOL_SIZE = 0  # threads that take part in the present job
POOL_PROGRAM = 1  # address of the job's table
POOL_OPERATIONS = 2  # rows of it
POOL_STEP = 3  # address of its step
POOL_TICKS = 4  # ticks that the last job took
POOL_LOST = 5  # those at its end that thread 0 waited for others
WORKER_WORDS = 8
WORKER_JOB = 0  # number of the job that the thread was given last
WORKER_DONE = 1  # number of the job it is done with
WORKER_ASLEEP = 2  # it no longer looks for jobs by itself
WORKER_WAKE = 3  # it was asleep when it was given the job


@dataclass(frozen=True)
class Kernel:
    """A function to compile: `module` of this package has a `kernels()` table with `name`.

    `strategy` is one of `strategies.STRATEGIES` where there are several ways to the same bits; then the table is
    `kernels(strategy)`.
    """

    module: str
    name: str
    strategy: str = ""


@dataclass(frozen=True)
class Operation:
    """A name, and the arguments in order."""

    name: str
    arguments: tuple[str, ...]

    @cached_property
    def slots(self) -> Any:
        """The word of each argument in a program's row, by name: a tuple, and in a kernel constants."""
        slots = namedtuple(self.name, self.arguments)  # type: ignore[misc]
        return slots(*range(FIRST_ARGUMENT, FIRST_ARGUMENT + len(self.arguments)))


def _operation(name: str, arguments: str) -> Operation:
    operation = Operation(name, tuple(arguments.split()))
    assert FIRST_ARGUMENT + len(operation.arguments) <= COUNTER
    return operation


# x, y: addresses of float32 rows `*_stride` bytes apart, unless said otherwise. q: rows of int8 blocks, made from y
# with `zero`; null for none. Where there is q, y may be null: nobody needs the floats.
EMBED = _operation("embed", "table row_bytes columns y y_stride scale")
# factor: null, or address of a float32 that multiplies base + norm
NORM = _operation("norm", "x x_stride weight columns epsilon base base_stride factor y y_stride q q_stride zero")
# weight, base: null for none
HEAD_NORM = _operation("head_norm", "x x_stride heads head_dim weight epsilon base base_stride scale y y_stride")
QUANTIZE = _operation("quantize", "x x_stride columns zero q q_stride")
MATMUL = _operation("matmul", "weights row_bytes rows columns x x_stride y y_stride")
NEXT = 21, 22, 23
"""Words of a product's row, after its arguments: weights, row_bytes and rows of the next one, which it prefetches when
it has no more of its own. 0 rows: none follows."""
NEXT_EXPERT_BYTES = 20
"""Beside NEXT: bytes from an expert's matrix to the next one's if the next product is one of the same experts, or 0."""
ROTATE = _operation("rotate", "x x_stride heads head_dim norm epsilon scale angles")
RESIZE_HEADS = _operation("resize_heads", "x x_stride heads head_dim y y_stride y_head_dim")
"""y = the heads of x, cut off or with zeros behind them."""
# layer: the number of the layer's row in a sequence's table of pages; head_bytes: of the keys of a head in a page
APPEND = _operation("append", "k v stride heads head_dim layer head_bytes")
# window, ahead: a row sees keys fewer than `window` positions before it, and up to `ahead` behind it in the same step
# partial: where `attend_one`, which sees none behind, leaves results of at most `spans` spans of a head, for `merge`
ATTEND = _operation(
    "attend",
    "q q_stride y y_stride heads kv_heads head_dim layer head_bytes window ahead softcap partial spans"
    " q_out q_out_stride zero",
)
NO_WINDOW = 2**40
"""The window of attention over all keys."""
MERGE = _operation("merge", "y heads head_dim window partial spans q zero")
GELU, SILU = 0, 1
"""What `activation` may be."""
GATED = _operation("gated", " ".join(MATMUL.arguments) + " up activation q q_stride zero")
"""y = activation(x weights^T) * (x up^T) in one pass, for many rows. `up`: a matrix like `weights`; MATMUL has 0 there.
"""
GATE = _operation("gate", "gate gate_stride up up_stride activation columns y y_stride q q_stride zero")
ADD = _operation("add", "x x_stride y y_stride columns")
SOFTCAP = _operation("softcap", "x x_stride columns cap")
SQUARES = _operation("squares", "x x_stride columns sums")
MASK = _operation("mask", "x x_stride columns")
"""Bit t % 32 of uint32 t / 32 of a row's mask says whether token t is allowed. Spare bits at the end do not count."""
GROUP_MAXIMA = _operation("group_maxima", "x x_stride columns y y_stride")
TOUCH = _operation("touch", "at size")
TIMESTAMP = _operation("timestamp", "at")

# ---- experts ----
# A row's choices are numbered by rank, choice j of row t is pair t * choices + j. experts: int64 and shares: float32 of
# each pair. groups, rows, places: what `layout` draws; results of experts are rows in the order of `rows`.
ROUTE = _operation("route", "x x_stride columns choices factor scales experts shares")
DISPATCH = _operation("dispatch", "experts columns choices groups rows places")
EXPERTS = _operation("experts", " ".join(MATMUL.arguments) + " expert_bytes groups sources choices")
"""Each pair's product with its expert's matrix of `rows` rows, `weights` being expert 0's. sources: the row of x of
each result, or null where x is in the order of the results. choices: of each row, for who counts bytes."""
EXPERTS_GATED = _operation("experts_gated", " ".join(EXPERTS.arguments) + " up q q_stride zero")
"""y = gelu(x weights^T) * (x up^T) of each pair in one pass, for many rows. `up`: expert 0's, with the same strides."""
EXPERT_GATE = _operation("expert_gate", " ".join(GATE.arguments) + " choices")
COMBINE = _operation("combine", "x x_stride choices shares places y y_stride columns")
EXPERT_SQUARES = _operation("expert_squares", "x x_stride columns experts groups sources sums counts")
"""sums: float32 (experts, columns) and counts: int64 (experts,) of the rows of x that each expert was given."""
