"""The table of a program: rows of words, memory by name, barriers, and results as int8 blocks. Knows no operation.

What an operation reads and writes is given by the names of buffers; that decides where there is a barrier.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.buffers import ALIGNMENT, aligned_bytes
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import ZEROS, activation_bytes
from edge_gemma.kernels.operations import Kernel, Operation, Regime


@dataclass(frozen=True)
class Buffer:
    """float32 rows of a step, (T, columns), `stride` bytes from one to the next."""

    name: str
    columns: int
    address: int
    stride: int

    def part(self, first: int, columns: int) -> Buffer:
        """Columns first..first + columns - 1."""
        assert first + columns <= self.columns
        return Buffer(self.name, columns, self.address + 4 * first, self.stride)


Consumers = tuple[Tensor, ...]
"""The weights that a result is multiplied with: their formats decide in which form it is needed."""


@dataclass(frozen=True)
class Forms:
    """A result as float32 rows (address 0 if nobody needs them) and as int8 blocks."""

    y: Buffer
    q: Buffer | None = None
    zero: int = 0

    @property
    def int8(self) -> tuple[int, int, int]:
        """The last three arguments of operations that make int8 blocks."""
        return (self.q.address, self.q.stride, self.zero) if self.q else (0, 0, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """What is written."""
        return (self.y.name, self.q.name) if self.q else (self.y.name,)


@dataclass(frozen=True)
class Recorded:
    """What a row of the table is: the operation, its kernel, the weights it takes, what it writes first."""

    operation: Operation
    kernel: Kernel
    weights: tuple[Tensor, ...]
    out: str


def words_of(table: NDArray[np.int64], placeholder: Buffer) -> tuple[NDArray[np.intp], ...]:
    """Where a table has a placeholder: the index to write the buffer's address to."""
    return np.nonzero(table == placeholder.address)


def zero_of(weight: Tensor) -> int:
    """The zero of the unsigned numbers that a quantized matrix is multiplied as."""
    return ZEROS.get(weight.format.name, 0)


def real(value: float) -> int:
    """The bits of a float64 as an integer word."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


class Recorder:
    """The table of one model for steps of one regime: operations in order, with the memory they work in.

    chunk: most rows of any step; `max_rows` is the most of this regime. `address_of` gives the address of a tensor's
    data. With `allocate` false the buffers are only counted, and the table cannot be run. With `observe`, results are
    kept as floats, too, for whoever wants to see what goes into a product.
    """

    def __init__(
        self,
        regime: Regime,
        chunk: int,
        address_of: Callable[[Tensor], int],
        *,
        allocate: bool = True,
        observe: bool = False,
    ) -> None:
        self.regime = regime
        self.max_rows = regime.most_rows(chunk)
        self.recorded: list[Recorded] = []
        """What each row is."""
        self._address_of = address_of
        self._allocate_memory = allocate
        self._observe_products = observe
        self._sizes: dict[str, int] = {}
        self._memory: dict[str, NDArray[np.uint8]] = {}
        self._placeholders = 0
        self._rows: list[list[int]] = []
        self._read: set[str] = set()
        self._written: set[str] = set()
        self._quantized: dict[tuple[str, int], Buffer] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def buffer_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(self._sizes.values())

    def kernels(self) -> set[Kernel]:
        """All kernels the table calls."""
        return {recorded.kernel for recorded in self.recorded}

    def table(self, addresses: dict[Kernel, int]) -> NDArray[np.int64]:
        """The table, int64 (operations, ROW_WORDS), with the kernels' addresses filled in."""
        table = np.zeros((len(self._rows), ops.ROW_WORDS), np.int64)
        for row, words, recorded in zip(table, self._rows, self.recorded, strict=True):
            row[ops.BARRIER : ops.BARRIER + len(words)] = words
            row[ops.KERNEL] = addresses[recorded.kernel]
        products = [i for i, recorded in enumerate(self.recorded) if recorded.operation in (ops.MATMUL, ops.EXPERTS)]
        for i, following in pairwise(products):
            self._announce(table, i, following)
        return table

    def _announce(self, table: NDArray[np.int64], product: int, following: int) -> None:
        """Tell a product of the next one's weights. Of experts' only those know which that have the same rows."""
        if self.recorded[following].operation is ops.EXPERTS:
            if self.recorded[product].operation is not ops.EXPERTS:
                return
            table[product, ops.NEXT_EXPERT_BYTES] = table[following, ops.EXPERTS.slots.expert_bytes]
        table[product, ops.NEXT] = table[following, ops.MATMUL.slots[:3]]

    def values(self, buffer: Buffer, count: int) -> NDArray[np.float32]:
        """What the first `count` rows of a buffer of its own are, (count, columns)."""
        memory = self._memory[buffer.name][: count * buffer.stride].view(np.float32)
        return memory.reshape(count, -1)[:, : buffer.columns]

    def placeholder(self, name: str, columns: int, stride: int) -> Buffer:
        """A buffer whose address is written into the table later (`words_of`); `name` may be of one that it lies in.

        Until then its address is a number that no memory has.
        """
        self._placeholders += 1
        return Buffer(name, columns, -self._placeholders, stride)

    # ---- rows ----------------------------------------------------------------------------------------------------

    def _emit(
        self,
        operation: Operation,
        kernel: Kernel,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        *arguments: int,
        weights: tuple[Tensor, ...] = (),
    ) -> None:
        assert len(arguments) == len(operation.arguments), operation
        barrier = bool(self._written & {*reads, *writes} or self._read & set(writes))
        if barrier:
            self._read, self._written = set(), set()
        self._read |= set(reads)
        self._written |= set(writes)
        self._forget(writes)
        self._rows.append([int(barrier), *arguments])
        self.recorded.append(Recorded(operation, kernel, weights, writes[0]))

    def _forget(self, written: tuple[str, ...]) -> None:
        """What was made of buffers that are written again."""
        self._quantized = {key: q for key, q in self._quantized.items() if key[0] not in written}

    # ---- forms of a result ---------------------------------------------------------------------------------------

    def _forms(self, name: str, columns: int, consumers: Consumers, times: int = 1) -> Forms:
        """Floats if somebody needs them; int8 blocks with the first zero that is wanted (others are made later)."""
        zeros = list(dict.fromkeys(zero_of(t) for t in consumers if not t.format.is_float))
        floats = len(zeros) != 1 or self._observe_products or any(t.format.is_float for t in consumers)
        y = self._buffer(name, columns, times) if floats else Buffer(name, columns, 0, 0)
        return Forms(y, self._int8(name, columns, zeros[0], times), zeros[0]) if zeros else Forms(y)

    def _int8(self, name: str, columns: int, zero: int, times: int = 1) -> Buffer:
        return self._allocate(f"{name} as int8, zero {zero}", columns, activation_bytes(columns), times)

    def _keep(self, forms: Forms) -> Buffer:
        """After the operation that makes them has been recorded."""
        if forms.q:
            self._quantized[forms.y.name, forms.zero] = forms.q
        return forms.y

    # ---- memory --------------------------------------------------------------------------------------------------

    def _buffer(self, name: str, columns: int, times: int = 1) -> Buffer:
        return self._allocate(name, columns, 4 * columns, times)

    def _allocate(self, name: str, columns: int, stride: int, times: int = 1) -> Buffer:
        """`times` rows for each of the step, an odd number of cache lines apart: were it a power of two, all would fall
        on the same few lines of a cache, and evict each other. That was 4-7% of a prompt."""
        stride = (-(-stride // ALIGNMENT) | 1) * ALIGNMENT
        size = stride * self.max_rows * times
        name = f"{name} ({columns})" if self._sizes.get(name, size) < size else name
        return Buffer(name, columns, self._room(name, size), stride)

    def _room(self, name: str, size: int) -> int:
        """Address of the memory called `name`, of at least `size` bytes."""
        if name not in self._sizes:
            self._sizes[name] = size
            if self._allocate_memory:
                self._memory[name] = aligned_bytes(size)
        assert self._sizes[name] >= size, f"{name} was recorded smaller"
        return self._memory[name].ctypes.data if self._allocate_memory else 0
