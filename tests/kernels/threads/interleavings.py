"""Explore all interleavings of threads that are generators and yield a request at every access to what they share.

Memory is sequentially consistent: one request is performed after the other, in every order. Knows no protocol.

A thread's state is where its generators stand and what their locals hold, and a state that was seen is not explored
again. So a value that was read must be in a local before the next request; and a thread that looks at the same word
again and again, in vain, comes back to the same state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterator
from typing import Any, NamedTuple

Request = tuple[Any, ...]
Memory = tuple[Any, ...]
Program = Callable[[], Generator[Request, Any, None]]
Step = tuple[str, Request, Any]
"""Who asked for what, and what it gave."""
Perform = Callable[[Memory, Request], list[tuple[Any, Memory]]]
"""What a request may give, and the memory after it: nothing where it has to wait, several where chance decides.
A value that is an exception is raised in the thread. Raises ViolationError where the request must not be made."""


class ViolationError(Exception):
    """What must not happen; told by `explore` with the schedule that leads there."""


class State(NamedTuple):
    """Memory, and the number of each thread's state."""

    memory: Memory
    places: tuple[int, ...]


class Thread:
    """The states of one generator and the ways between them, found by running it again up to where it is needed."""

    def __init__(self, program: Program, local: Callable[[Request], bool]) -> None:
        self.requests: list[Request | None] = []
        """What the thread asks for in each state; None: it has ended."""
        self.local: list[bool] = []
        """Whether that is local."""
        self._program, self._is_local = program, local
        self._numbers: dict[Hashable, int] = {}
        self._histories: list[tuple[Any, ...]] = []
        self._ways: dict[tuple[int, Any], int] = {}
        self.start = self._number(())

    def advance(self, place: int, value: Any) -> int:
        """The state after the request of `place` gave `value`."""
        if (place, value) not in self._ways:
            self._ways[place, value] = self._number((*self._histories[place], value))
        return self._ways[place, value]

    def _number(self, history: tuple[Any, ...]) -> int:
        generator = self._program()
        try:
            request = next(generator)
            for value in history:
                request = generator.throw(value) if isinstance(value, BaseException) else generator.send(value)
            key: Hashable = request, tuple(_frames(generator))
        except StopIteration:
            key = request = None
        if key not in self._numbers:
            self._numbers[key] = len(self.requests)
            self.requests.append(request)
            self.local.append(request is not None and self._is_local(request))
            self._histories.append(history)
        return self._numbers[key]


def _frames(generator: Any) -> Iterator[Hashable]:
    while generator is not None:
        frame = generator.gi_frame
        yield frame.f_code, frame.f_lasti, tuple(frame.f_locals.items())
        generator = generator.gi_yieldfrom


class Explorer:
    """Threads by name, how their requests are performed, and which of these nobody else can notice or hinder.

    A request that is `local` is performed at once: its order among those of others makes no difference.
    """

    def __init__(self, programs: dict[str, Program], perform: Perform, local: Callable[[Request], bool]) -> None:
        self._names = list(programs)
        self._threads = [Thread(program, local) for program in programs.values()]
        self._perform = perform
        self._found: dict[State, int] = {}
        self._origins: list[tuple[int, Step]] = []
        self._before: defaultdict[int, list[int]] = defaultdict(list)
        self._ended: list[int] = []

    def explore(self, memory: Memory) -> int:
        """Visit all states; how many there are. Raises ViolationError for what must not happen.

        That is, besides what `perform` finds: a state from which there is no way to the end of all threads.
        """
        waiting = [self._settled(State(memory, tuple(thread.start for thread in self._threads)))]
        self._note(waiting[0], -1, ("", (), None))
        while waiting:
            state = waiting.pop()
            number = self._found[state]
            if all(thread.requests[place] is None for thread, place in zip(self._threads, state.places, strict=True)):
                self._ended.append(number)
            try:
                for step, after in self._steps(state):
                    found = self._found.get(after)
                    if found is None:
                        found = self._note(after, number, step)
                        waiting.append(after)
                    self._before[found].append(number)
            except ViolationError as error:
                raise ViolationError(f"{error}, after\n{self._schedule(number)}") from None
        self._check_that_all_can_end()
        return len(self._found)

    def _note(self, state: State, origin: int, step: Step) -> int:
        self._found[state] = len(self._origins)
        self._origins.append((origin, step))
        return len(self._origins) - 1

    def _outcomes(self, state: State, i: int, request: Request) -> Iterator[tuple[Any, State]]:
        for value, memory in self._perform(state.memory, request):
            places = list(state.places)
            places[i] = self._threads[i].advance(places[i], value)
            yield value, State(memory, tuple(places))

    def _steps(self, state: State) -> Iterator[tuple[Step, State]]:
        local = [i for i, thread in enumerate(self._threads) if thread.local[state.places[i]]]
        for i in local[:1] or range(len(self._threads)):
            if request := self._threads[i].requests[state.places[i]]:
                for value, after in self._outcomes(state, i, request):
                    yield (self._names[i], request, value), self._settled(after)

    def _settled(self, state: State) -> State:
        """After all local requests that have one outcome."""
        for i, thread in enumerate(self._threads):
            while thread.local[state.places[i]] and (request := thread.requests[state.places[i]]):
                outcomes = list(self._outcomes(state, i, request))
                if len(outcomes) != 1:
                    break
                state = outcomes[0][1]
        return state

    def _check_that_all_can_end(self) -> None:
        can_end, waiting = set(self._ended), list(self._ended)
        while waiting:
            new = set(self._before[waiting.pop()]) - can_end
            can_end |= new
            waiting += new
        stuck = min(set(range(len(self._origins))) - can_end, default=None)
        if stuck is not None:
            raise ViolationError(f"there is no way to the end any more, after\n{self._schedule(stuck)}")

    def _schedule(self, number: int) -> str:
        steps = []
        while number > 0:
            number, step = self._origins[number]
            steps.append("{}: {} -> {!r}".format(*step))
        return "\n".join(reversed(steps))
