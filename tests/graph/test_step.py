"""A step's rows: in which order they lie, and what the kernels are told of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.graph.cache import PagePool
from edge_gemma.graph.states import AttentionState, Rope
from edge_gemma.graph.step import Angles, SequenceRows, Step, segments_of
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import QUERY_ROWS

POOL = PagePool([AttentionState(1, 32)], "f16")


def rows_of(count: int, wanted: int, length: int = 0) -> SequenceRows:
    table = POOL.new_table(1000)
    table.length = length
    return SequenceRows(table, np.arange(count, dtype=np.int64), wanted)


def test_rows_whose_logits_are_wanted_come_last() -> None:
    prompt, decode, other = rows_of(40, 1), rows_of(1, 1), rows_of(5, 0)
    shown = [(p.rows, p.start, p.end) for p in segments_of([prompt, decode, other])]
    assert shown == [(prompt, 0, 39), (other, 0, 5), (prompt, 39, 40), (decode, 0, 1)]


def test_a_prompt_is_not_cut_where_its_last_row_can_follow() -> None:
    prompt, decode = rows_of(40, 1), rows_of(1, 1)
    assert [(p.start, p.end) for p in segments_of([prompt, decode])] == [(0, 40), (0, 1)]
    assert [(p.start, p.end) for p in segments_of([rows_of(7, 7)])] == [(0, 7)]


def test_factors_divide_the_frequency_of_each_pair() -> None:
    angles = Angles(Rope(8, 100.0, 2.0, factors=(1.0, 4.0, 0.5, 1e30)), 2)
    angles.fill(np.array([0, 7]))
    turns = 7 * 100.0 ** -np.array([0, 0.25, 0.5, 0.75]) / 2 / [1, 4, 0.5, 1e30]
    assert np.array_equal(angles.table, np.float32([[1] * 4 + [0] * 4, [*np.cos(turns), *np.sin(turns)]]))
    plain, same = (Angles(Rope(8, 100.0, 2.0, factors=f), 1) for f in (None, (1.0,) * 4))
    for table in (plain, same):
        table.fill(np.array([31]))
    assert np.array_equal(plain.table, same.table)


def test_neighbours_have_the_angles_of_their_pair() -> None:
    """Behind the dimensions of a head there is nothing to turn."""
    angles, pairs = Angles(Rope(8, 100.0, 2.0, neighbours=True), 2), Angles(Rope(8, 100.0, 2.0), 2)
    for table in (angles, pairs):
        table.fill(np.array([0, 7]))
    cosines, sines = angles.table[:, :32], angles.table[:, 32:]
    assert np.array_equal(cosines[:, :8], pairs.table[:, :4].repeat(2, axis=1))
    assert np.array_equal(sines[:, :8], pairs.table[:, 4:].repeat(2, axis=1) * np.float32([-1, 1] * 4))
    assert not cosines[:, 8:].any() and not sines[:, 8:].any()


@given(
    st.lists(
        st.tuples(st.integers(1, 70), st.integers(0, 70), st.integers(0, 500)).map(lambda t: (t[0], min(t[:2]), t[2])),
        min_size=1,
        max_size=5,
    )
)
def test_the_words_say_each_row_once(parts: list[tuple[int, int, int]]) -> None:
    batch = [rows_of(*part) for part in parts]
    step = Step([Rope(32, 1e4)], 400, threads=1, scratch_bytes=64)
    step.prepare(batch)
    count = sum(part[0] for part in parts)
    assert step.words[ops.STEP_ROWS] == count
    tables, tokens = step._tables[:count].tolist(), step._tokens[:count].tolist()
    positions = step._positions[:count].tolist()
    last = {r.table.address: r.table.length + len(r.tokens) - 1 for r in batch}
    assert step._lasts[:count].tolist() == [last[address] for address in tables]
    places = list(zip(tables, positions, tokens, strict=True))
    expected = [(r.table.address, r.table.length + i, i) for r in batch for i in range(len(r.tokens))]
    assert sorted(places) == sorted(expected)
    wanted = [
        (r.table.address, r.table.length + i, i) for r in batch for i in range(len(r.tokens) - r.wanted, len(r.tokens))
    ]
    assert places[count - len(wanted) :] == wanted
    tiles = step._tiles[: step.words[ops.STEP_N_TILES]].tolist()
    assert [row for first, rows in tiles for row in range(first, first + rows)] == [*range(count)]
    for first, rows in tiles:
        assert 1 <= rows <= QUERY_ROWS and len(set(tables[first : first + rows])) == 1
        assert positions[first : first + rows] == [*range(positions[first], positions[first] + rows)]
