"""Tables of pages: each sequence keeps what it wrote, whoever it shared pages with, in no more memory than it needs."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.errors import EdgeGemmaError, MemoryBudgetError
from edge_gemma.graph.cache import GO_BACK, PagePool, PageTable, cache_bytes, most_pages
from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import LANES, SPAN

STATES = [AttentionState(2, 32), AttentionState(1, 64, window=300), AttentionState(2, 32, window=20)]
CONTEXT = 1500
PAGE = 2 * 64 * SPAN * 2
"""Bytes of a page of any of the layers in f16."""


def words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


def slots(table: PageTable, layer: int, position: int) -> list[int]:
    """The addresses of an element of the key, and of the value, of each head: as the kernels find them."""
    state, slot = STATES[layer], position % SPAN
    (pages,) = words(table.address + 8 * layer, 1)
    (page,) = words(pages + 8 * (position // SPAN), 1)
    assert page, f"no page for position {position} of layer {layer}"
    head_bytes = 2 * SPAN * state.head_dim
    key = 2 * (slot // LANES * LANES * state.head_dim + slot % LANES)
    value = 2 * slot * state.head_dim
    heads = range(state.kv_heads)
    return [page + h * head_bytes + key for h in heads] + [page + (h + len(heads)) * head_bytes + value for h in heads]


def write(table: PageTable, values: Sequence[int]) -> None:
    """One value for each position after the last; all layers and heads get it."""
    end = table.length + len(values)
    table.reserve(end)
    for position, value in enumerate(values, table.length):
        for layer in range(len(STATES)):
            for at in slots(table, layer, position):
                ctypes.c_uint16.from_address(at).value = value
    table.advance(end)


def write_nothing(table: PageTable, count: int) -> None:
    table.reserve(count)
    table.advance(count)


def check(table: PageTable, values: Sequence[int]) -> None:
    """What a row after the last position would see is what was written."""
    assert table.length == len(values)
    for layer, state in enumerate(STATES):
        low = 0 if state.window is None else max(0, len(values) - state.window + 1)
        for position in range(low, len(values)):
            got = {ctypes.c_uint16.from_address(at).value for at in slots(table, layer, position)}
            assert got == {values[position]}, (layer, position)
        assert not table._pages[layer, : max(0, low - GO_BACK) // SPAN].any()


def pages_of(table: PageTable) -> set[int]:
    return {int(page) for page in table._pages.ravel() if page}


def test_a_fork_shares_all_pages_until_one_writes() -> None:
    pool = PagePool(STATES, "f16")
    one = pool.new_table(CONTEXT)
    write(one, range(300))
    assert pool.bytes_in_use == one.bytes == 5 * PAGE  # a window has left its first one
    other = one.fork()
    assert pool.bytes_in_use == 5 * PAGE and pages_of(one) == pages_of(other)
    write(one, [8])  # behind all that the other one sees
    assert pool.bytes_in_use == 5 * PAGE
    write(other, [7])  # three layers have a page that is not full
    assert pool.bytes_in_use == 8 * PAGE and len(pages_of(one) & pages_of(other)) == 2
    check(one, [*range(300), 8])
    check(other, [*range(300), 7])
    one.release()
    one.release()
    assert pool.bytes_in_use == other.bytes == 5 * PAGE and one.bytes == one.length == 0
    check(other, [*range(300), 7])


def test_pages_that_leave_a_window_are_given_back() -> None:
    states = [AttentionState(2, 32, window=300)]
    pool, rows = PagePool(states, "f16"), 100
    table, most = pool.new_table(10 * 300 + rows), most_pages(states[0], 4000, rows)
    assert most == 3
    seen = []
    for end in range(rows, 10 * 300, rows):
        table.reserve(end)
        seen.append(pool.bytes_in_use // PAGE)
        table.advance(end)
    assert max(seen) == most
    for length, held in ((SPAN + 298, 3), (SPAN + 299, 2)):  # the row at SPAN + 298 still sees SPAN - 1
        table.truncate(0)
        write_nothing(table, length)
        assert table.bytes == held * PAGE
    assert cache_bytes(states, 4000, rows, "f16") == most * PAGE


def test_going_back_is_refused_where_a_window_has_moved_on() -> None:
    pool = PagePool(STATES, "f16")
    table = pool.new_table(CONTEXT)
    write(table, [*range(600)])
    earlier = table.fork()
    write(table, [*range(600, 1000)])
    able = [table.can_truncate(n) for n in (1001, 1000, 811, 810, 1, 0, -1)]
    assert able == [False, True, True, False, False, True, False]
    assert [earlier.can_truncate(n) for n in (600, 555, 554)] == [True, True, False]
    with pytest.raises(ValueError, match="cannot go back to 810 of 1000"):
        table.truncate(810)
    check(table, range(1000))
    earlier.truncate(555)
    write(earlier, [9] * 10)
    check(earlier, [*range(555), *[9] * 10])
    table.truncate(0)
    assert table.bytes == 0
    write(table, [5, 6])
    check(table, [5, 6])
    table.truncate(1)
    write(table, [7])
    check(table, [5, 7])


def test_who_goes_back_writes_to_a_page_of_its_own() -> None:
    pool = PagePool(STATES, "f16")
    one = pool.new_table(CONTEXT)
    write(one, range(10))
    other = one.fork()
    write(one, range(10, 20))
    third = one.fork()
    one.truncate(5)
    write(one, [1, 2])
    write(other, [3])
    check(one, [*range(5), 1, 2])
    check(other, [*range(10), 3])
    check(third, range(20))
    assert pool.bytes_in_use == 9 * PAGE


def test_a_full_pool_says_so_and_changes_nothing() -> None:
    pool = PagePool(STATES, "f32", limit_bytes=2 * 7 * PAGE)
    one, two = pool.new_table(CONTEXT), pool.new_table(CONTEXT)
    write(one, range(256))
    before = pages_of(one)
    with pytest.raises(
        MemoryBudgetError, match=f"{2 * 6 * PAGE} bytes more are needed, {2 * 3 * PAGE} of {2 * 7 * PAGE}"
    ):
        pool.reserve([(one, 257), (two, 1)])
    assert pages_of(one) == before and not pages_of(two) and pool.bytes_in_use == 2 * 3 * PAGE
    write(two, [3])
    check(two, [3])
    with pytest.raises(MemoryBudgetError):
        one.reserve(257)
    two.release()
    one.reserve(257)


def test_a_dropped_table_gives_its_pages_back_from_any_thread() -> None:
    pool = PagePool(STATES, "f16")
    kept, tables = pool.new_table(CONTEXT), [pool.new_table(CONTEXT)]
    write(tables[0], range(10))
    write(kept, range(10))
    thread = threading.Thread(target=lambda: (tables.clear(), gc.collect()))
    thread.start()
    thread.join()
    assert pool.bytes_in_use == 3 * PAGE
    check(kept, range(10))


def test_a_closed_pool() -> None:
    pool = PagePool(STATES, "f16")
    table = pool.new_table(CONTEXT)
    table.reserve(1)
    pool.close()
    pool.close()
    assert pool.bytes_in_use == pool.bytes_taken == 0
    for use in (lambda: pool.new_table(5), lambda: table.reserve(SPAN + 1), table.fork):
        with pytest.raises(EdgeGemmaError, match="closed"):
            use()
    table.release()


@dataclass
class Sequences:
    """Tables of one pool, each with what was written to it; all are checked after every act."""

    pool: PagePool
    tables: list[PageTable] = field(default_factory=list)
    values: list[list[int]] = field(default_factory=list)
    next_value: int = 0

    def begin(self) -> None:
        self.tables.append(self.pool.new_table(CONTEXT))
        self.values.append([])

    def write(self, i: int, count: int) -> None:
        count = min(count, CONTEXT - len(self.values[i]))
        values = [(self.next_value + j) % 65536 for j in range(count)]
        before, used = pages_of(self.tables[i]), self.pool.bytes_in_use
        try:
            write(self.tables[i], values)
        except MemoryBudgetError:
            assert pages_of(self.tables[i]) == before and self.pool.bytes_in_use == used
            return
        self.next_value += count
        self.values[i] += values

    def fork(self, i: int, _: int) -> None:
        self.tables.append(self.tables[i].fork())
        self.values.append(self.values[i].copy())

    def truncate(self, i: int, count: int) -> None:
        length = max(0, len(self.values[i]) - count)
        if self.tables[i].can_truncate(length):
            self.tables[i].truncate(length)
            del self.values[i][length:]

    def release(self, i: int, how: int) -> None:
        table, _ = self.tables.pop(i), self.values.pop(i)
        if how % 2:
            table.release()
        del table
        if not self.tables:
            self.begin()

    def check(self) -> None:
        for table, values in zip(self.tables, self.values, strict=True):
            check(table, values)
        pages = set[int]().union(*map(pages_of, self.tables))
        assert self.pool.bytes_in_use == PAGE * len(pages) <= (self.pool.limit_bytes or 0)


ACTS = st.tuples(
    st.sampled_from(["write", "write", "write", "fork", "truncate", "release"]),
    st.integers(0, 99),
    st.sampled_from([1, 2, 15, 16, 17, 100, 255, 256, 257, 300, 700]),
)


@settings(max_examples=60)
@given(st.lists(ACTS, max_size=25), st.integers(3, 60))
def test_each_sequence_keeps_what_it_wrote(acts: list[tuple[str, int, int]], pages: int) -> None:
    sequences = Sequences(PagePool(STATES, "f16", pages * PAGE))
    sequences.begin()
    for act, which, count in acts:
        getattr(sequences, act)(which % len(sequences.tables), count)
        sequences.check()


def test_arrangement_is_that_of_the_kernels() -> None:
    """What `slots` says here of a page, the twin of the kernels says too."""
    from edge_gemma.kernels.reference import cache_types

    pages = np.arange(2 * 2 * SPAN * 32, dtype=np.float32).reshape(1, 2, 2, SPAN * 32)
    keys, values = cache_types.float_views(pages)
    slot, head = 77, 1
    assert keys[0, head, slot // LANES, 0, slot % LANES] == pages[0, 0, head, slot // LANES * LANES * 32 + slot % LANES]
    assert values[0, head, slot, 0] == pages[0, 1, head, slot * 32]


def test_a_table_is_restored_from_its_pages() -> None:
    """In another pool, with what each layer had, to be cut and continued as before."""
    pool, other = PagePool(STATES, "f16"), PagePool(STATES, "f16")
    table = pool.new_table(CONTEXT)
    write(table, [*range(700)])
    table.truncate(690)
    assert table.first_positions == [0, SPAN, 2 * SPAN]
    restored = other.restored_table(CONTEXT, 690, table.first_positions)
    for layer, first in enumerate(table.first_positions):
        for span in range(first // SPAN, 3):
            restored.fill(layer, span, table.page(layer, span))
    check(restored, range(690))
    assert restored.bytes == table.bytes == other.bytes_in_use
    assert [restored.can_truncate(n) == table.can_truncate(n) for n in range(691)] == [True] * 691
    for each in (table, restored):
        write(each, [*range(690, 1200)])
    check(restored, range(1200))
    assert restored.first_positions == table.first_positions and restored.bytes == table.bytes
    restored.release()
    assert other.bytes_in_use == 0


def test_a_table_that_does_not_fit_is_not_restored() -> None:
    pool = PagePool(STATES, "f16", limit_bytes=6 * PAGE)
    with pytest.raises(MemoryBudgetError, match="bytes more are needed"):
        pool.restored_table(CONTEXT, 700, [0, 0, 2 * SPAN])
    gc.collect()
    assert pool.bytes_in_use == 0
    table = pool.restored_table(CONTEXT, 700, [0, SPAN, 2 * SPAN])
    assert pool.bytes_in_use == 6 * PAGE
    pool.close()
    for call in (lambda: table.page(0, 0), lambda: pool.restored_table(CONTEXT, 1, [0, 0, 0])):
        with pytest.raises(EdgeGemmaError, match="closed"):
            call()
