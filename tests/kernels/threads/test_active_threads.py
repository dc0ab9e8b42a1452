"""The number of active threads is the fastest, whatever other programs do, and others are tried rarely."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.kernels.threads.active_threads import LONGEST_WAIT, WINDOW, ActiveThreads

Machine = Callable[[int], tuple[float, float]]
"""Threads -> seconds of a step, and threads that wait meanwhile."""


def alone(size: int) -> tuple[float, float]:
    """Nobody else: more threads are faster, and wait for each other a little."""
    return 0.01 / size, 0.02 * size


def busy(cores: int, programs: int) -> Machine:
    """Of `cores`, some also run other programs: a thread that shares a core makes all wait."""

    def step(size: int) -> tuple[float, float]:
        if size == 1:
            return (0.01, 0.0) if programs < cores else (0.02, 0.0)
        shared = size - (cores - programs)
        return (0.01 / size, 0.02 * size) if shared <= 0 else (0.03 / size + 0.01 * shared, 0.6 * size)

    return step


def uneven(size: int) -> tuple[float, float]:
    """Work that falls into too few pieces: threads wait for the last, and yet more are faster."""
    return 0.01 / size + 0.001, 0.3 * size


def spent(active: ActiveThreads, machine: Machine, start: float, seconds: float) -> dict[int, float]:
    """Seconds at each size."""
    now, times = start, dict.fromkeys(range(1, active.most + 1), 0.0)
    while now < start + seconds:
        step, idle = machine(active.size)
        times[active.size] += step
        active.note(now, now + step, 1, idle)
        now += step
    return times


@pytest.mark.parametrize("most", [1, 2, 8])
def test_all_take_part_where_nobody_disturbs(most: int) -> None:
    times = spent(ActiveThreads(most), alone, 0.0, 20.0)
    assert times[most] == sum(times.values())


@pytest.mark.parametrize(("cores", "programs"), [(2, 1), (8, 1), (8, 2), (8, 5), (2, 2)])
def test_busy_cores_are_left_to_others(cores: int, programs: int) -> None:
    active, best = ActiveThreads(cores), max(1, cores - programs)
    spent(active, busy(cores, programs), 0.0, 3.0)
    times = spent(active, busy(cores, programs), 3.0, 60.0)
    assert times[best] > 0.9 * sum(times.values())
    assert times[best] < sum(times.values()), "more are tried from time to time"


def test_what_others_leave_is_taken_again() -> None:
    active = ActiveThreads(8)
    end = sum(spent(active, busy(8, 6), 0.0, 30.0).values())
    spent(active, alone, end, 3 * LONGEST_WAIT * WINDOW)
    assert active.size == 8


def test_threads_that_wait_by_nature_stay() -> None:
    times = spent(ActiveThreads(8), uneven, 0.0, 60.0)
    assert times[8] > 0.85 * sum(times.values())


def test_work_counts_and_not_steps() -> None:
    """Chunks of a prompt differ in length."""
    active, now = ActiveThreads(2), 0.0
    for i in range(400):
        work = (256, 256, 40)[i % 3]
        step, idle = busy(2, 1)(active.size)
        active.note(now, now + step * work / 100, work, idle)
        now += step * work / 100
    assert active.size == 1


def test_a_pause_ends_an_attempt_and_the_wait_for_the_next() -> None:
    active = ActiveThreads(2)
    now = sum(spent(active, busy(2, 1), 0.0, 60.0).values())
    now += sum(spent(active, busy(2, 1), now, 2 * WINDOW).values())
    assert active.size == 1
    spent(active, alone, now + 2.0, 3 * WINDOW)
    assert active.size == 2
    active = ActiveThreads(2)
    active.note(0.0, WINDOW, 1, 2.0)
    assert active.size == 1
    active.note(5.0, 5.0 + WINDOW / 2, 1, 0.0)
    assert active.size == 2, "the only size whose speed is known"


STEPS = st.lists(st.tuples(st.integers(1, 300), st.floats(0.0, 3.0), st.floats(0.0, 8.0)), max_size=200)


@given(st.integers(1, 8), STEPS)
def test_the_size_stays_within_bounds(most: int, steps: list[tuple[int, float, float]]) -> None:
    active, now = ActiveThreads(most), 0.0
    for work, seconds, idle in steps:
        active.note(now, now + seconds, work, idle)
        now += 2 * seconds
        assert 1 <= active.size <= most
