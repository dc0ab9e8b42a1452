"""The protocol of a pool's threads holds whatever the order in which they run, and the model finds what would break it.

`protocol_model` says what is modelled, `interleavings` how it is explored.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator
from typing import Any

import pytest

from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.threads.pool import ThreadPool
from tests.kernels.threads.interleavings import Explorer, Memory, Request, ViolationError
from tests.kernels.threads.protocol_model import SOURCE, Job, Model, Steps

STUCK = "no way to the end"
OVER = "a step is used that is not the present job's"
NOT_ONCE = "an operation is not done once"
TOO_EARLY = "begun before all have done those before it"
ENDED = "a job has ended with"


@pytest.mark.parametrize(
    "model",
    [
        Model(1, [Job(1), Job(1, leading=False)], cancels=1, interrupts=1),
        Model(2, [Job(2), Job(1), Job(2)]),
        Model(2, [Job(2, leading=False), Job(2)]),
        Model(2, [Job(2, leading=False, operations=1), Job(1, operations=1), Job(2, operations=1)], interrupts=1),
        Model(2, [Job(2), Job(2)], interrupts=2),
        Model(2, [Job(2)], cancels=1, interrupts=2),
        Model(2, [Job(2, operations=3), Job(2)], cancels=1),
        Model(2, [Job(2), Job(2)], closed_by_another=True),
        Model(2, [Job(2, leading=False)], cancels=1, closed_by_another=True),
        Model(3, [Job(3, operations=3)], cancels=1),
        Model(3, [Job(3), Job(2)]),
        Model(3, [Job(2, operations=1), Job(3, operations=1)]),
        Model(3, [Job(3, operations=1), Job(1, operations=1), Job(3, operations=1)]),
        Model(3, [Job(3, leading=False, operations=2)]),
        Model(3, [Job(3, operations=1)], cancels=1, interrupts=1),
        Model(3, [Job(3, operations=1)], closed_by_another=True),
    ],
    ids=str,
)
def test_the_protocol_holds_in_all_interleavings(model: Model) -> None:
    assert model.explore() > 100


Change = Callable[[str], str]


def moved(line: str, after: str) -> Change:
    """The line of the source that begins so stands behind another."""

    def change(source: str) -> str:
        lines = source.splitlines(keepends=True)
        (here,) = (i for i, text in enumerate(lines) if text.strip().startswith(line))
        text = lines.pop(here)
        (there,) = (i for i, text in enumerate(lines) if text.strip().startswith(after))
        return "".join([*lines[: there + 1], text, *lines[there + 1 :]])

    return change


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(source: str) -> str:
        assert source.count(old) == 1, old
        return source.replace(old, new)

    return change


FAULTS: dict[str, tuple[Change, str, dict[str, Any]]] = {
    "asleep is said after the last look": (
        moved("write_shared(mine, WORKER_ASLEEP, 1)", after="job = read_shared(mine, WORKER_JOB)"),
        STUCK,
        {},
    ),
    "who sleeps is looked up before the job is given": (
        moved("write_shared(one, WORKER_JOB, job)", after="write_shared(one, WORKER_WAKE"),
        STUCK,
        {},
    ),
    "the barrier opens before the count is reset": (
        moved("write_shared(step, STEP_ARRIVED, 0)", after="write_shared(step, STEP_GENERATION"),
        STUCK,
        {},
    ),
    "the generation is read after arriving": (
        replaced(
            "if fetch_add(step, STEP_ARRIVED, 1) + 1 ==",
            "arrived = fetch_add(step, STEP_ARRIVED, 1) + 1\n"
            "    generation = read_shared(step, STEP_GENERATION)\n    if arrived ==",
        ),
        STUCK,
        {},
    ),
    "the barrier opens before it is said whether to stop": (
        moved("write_shared(step, STEP_STOPPED", after="write_shared(step, STEP_GENERATION"),
        f"{STUCK}|{ENDED}",
        {"cancels": 1},
    ),
    "everyone reads the cancel flag": (
        replaced("return read_shared(step, STEP_STOPPED)", "return read_shared(step, STEP_CANCEL)"),
        f"{STUCK}|{ENDED}",
        {"cancels": 1},
    ),
    "arriving is not atomic": (
        replaced(
            "if fetch_add(step, STEP_ARRIVED, 1) + 1 ==",
            "arrived = read_shared(step, STEP_ARRIVED) + 1\n"
            "    write_shared(step, STEP_ARRIVED, arrived)\n    if arrived ==",
        ),
        STUCK,
        {},
    ),
    "nobody waits at a barrier": (
        replaced("while read_shared(step, STEP_GENERATION) == generation:", "while False:"),
        TOO_EARLY,
        {},
    ),
    "the leader does not wait for the others": (
        replaced("while read_shared(worker(pool, thread), WORKER_DONE) < job:", "while False:"),
        ENDED,
        {},
    ),
    "done is said before the work": (
        replaced("mode = swap_float_mode(PLAIN)", "mode = write_shared(worker(pool, thread), WORKER_DONE, job)"),
        f"{OVER}|{ENDED}",
        {},
    ),
    "a job that is done is led again": (
        replaced("if read_shared(worker(pool, 0), WORKER_DONE) >= job:", "if False:"),
        f"{NOT_ONCE}|{STUCK}",
        {"interrupts": 1},
    ),
    "a thread forgets which job it has done": (replaced("        done = job\n", ""), f"{NOT_ONCE}|{OVER}", {}),
    "a thread that leaves a job counts what it is given": (
        replaced("done = read_shared(mine, WORKER_DONE)", "done = read_shared(mine, WORKER_JOB)"),
        STUCK,
        {},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_compiled_code_is_found(fault: str) -> None:
    change, message, circumstances = FAULTS[fault]
    with pytest.raises(ViolationError, match=message):
        Model(2, [Job(2), Job(2)], **circumstances, source=change(SOURCE)).explore()


class WakingWhoSleptBefore(Model):
    def do(self, job: int) -> Steps:
        for thread in range(1, self.jobs[job - 1].threads):
            wake = yield "read_shared", self._worker(thread), ops.WORKER_WAKE
            if wake:
                yield "put", ("jobs", thread), job
        yield from self._post(0, job, 0)
        yield from self._lead(0, job, 0)


class WakingNobodyAgain(Model):
    def abandon(self, job: int, step: int) -> Steps:
        yield "write_shared", step, ops.STEP_CANCEL, 1
        yield from self._lead(0, job, 0)


class AbandoningAtOnce(Model):
    def abandon(self, job: int, step: int) -> Steps:
        yield "write_shared", step, ops.STEP_CANCEL, 1


class InterruptedTwice(Model):
    def abandon(self, job: int, step: int) -> Steps:
        yield "write_shared", step, ops.STEP_CANCEL, 1
        yield from self.do(job)


class ClosingDuringAJob(Model):
    def close(self) -> Steps:
        yield ("close",)
        for thread in range(self.size):
            yield "put", ("jobs", thread), 0


class TrustingANote(Model):
    """Waits for the leader to say that it is done; it may have said so of a job before."""

    def do(self, job: int) -> Steps:
        yield from self._post(0, job, 0)
        yield ("point",)
        yield "put", ("jobs", 0), job
        yield "get", "done"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WakingWhoSleptBefore(2, [Job(2)]), STUCK),
        (WakingNobodyAgain(2, [Job(2)], interrupts=1), STUCK),
        (AbandoningAtOnce(2, [Job(2)], interrupts=1), f"{OVER}|{ENDED}"),
        (InterruptedTwice(2, [Job(2)], interrupts=2), f"{OVER}|{ENDED}|{STUCK}"),
        (ClosingDuringAJob(2, [Job(2)], closed_by_another=True), STUCK),
        (TrustingANote(1, [Job(1, leading=False)] * 2, interrupts=1), f"{OVER}|{ENDED}"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_a_fault_of_the_python_code_is_found(model: Model, message: str) -> None:
    with pytest.raises(ViolationError, match=message):
        model.explore()


@pytest.mark.parametrize(
    ("real", "modelled"),
    [
        (ThreadPool._do, Model.do),
        (ThreadPool._run, Model.abandon),
        (ThreadPool._leader, Model.leader),
        (ThreadPool._worker, Model.worker),
    ],
)
def test_the_model_was_written_from_these_lines(real: Callable[..., Any], modelled: Callable[..., Any]) -> None:
    lines = [line.split("  # ")[0].strip() for line in inspect.getsource(real).splitlines()[1:]]
    lines = [line for line in lines if not line.startswith('"""')]
    assert "\n".join(re.findall(r" # (.*)", inspect.getsource(modelled))) in "\n".join(lines)


def perform(memory: Memory, request: Request) -> list[tuple[Any, Memory]]:
    if request[0] == "read":
        return [(memory[0], memory)]
    if request[0] == "wait" and memory[0] != request[1]:
        return []
    return [(None, request[1:])]


def adding() -> Generator[Request, Any, None]:
    value = yield ("read",)
    yield "write", value + 1


def waiting_for(total: int) -> Callable[[], Generator[Request, Any, None]]:
    def program() -> Generator[Request, Any, None]:
        yield "wait", total

    return program


def test_an_explorer_sees_each_order_once() -> None:
    programs = {"one": adding, "other": adding}
    assert Explorer(programs, perform, lambda _: False).explore((0,)) == 12


def test_an_explorer_finds_the_order_in_which_one_waits_for_ever() -> None:
    programs = {"one": adding, "other": adding, "third": waiting_for(2)}
    with pytest.raises(ViolationError, match=STUCK):
        Explorer(programs, perform, lambda _: False).explore((0,))
    assert Explorer({"one": adding, "third": waiting_for(1)}, perform, lambda _: False).explore((0,)) == 4
