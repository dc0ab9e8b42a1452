"""How many threads of a pool take part, so that programs on the same cores slow it down by little more than they take.

There are some hundred barriers in a step. When a thread's core is given to another program for some milliseconds, all
wait for it; so a thread for each core is slower, where not all are free, than one for each that is. Which number is
best is measured while steps are run. Results do not depend on it, so it may change from step to step.

Knows no thread and no clock: it is told what each step took and lost.
"""

from __future__ import annotations

WINDOW = 0.1
"""Seconds of steps that are looked at together: some time slices of a scheduler."""
TOO_IDLE = 0.75
"""Threads, on average, that waited for others in a window: above this fewer are tried. With one busy program on two
cores they are 0.9 to 1.9, without any at most 0.13."""
WORTH = 1.05
"""A smaller number is taken if it is faster by this factor."""
FIRST_WAIT, LONGEST_WAIT = 2, 32
"""Until an attempt that failed is repeated, in times of what it took: at first, and at most. So attempts take 3%."""
PAUSE = 1.0
"""Seconds without a step after which other programs may well have ended or begun."""


class Attempts:
    """When to try again something that may fail, at most one time in LONGEST_WAIT."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether to try."""
        return now >= self._next

    def succeeded(self) -> None:
        """The next one may follow at once."""
        self._wait, self._next = FIRST_WAIT, 0.0

    def failed(self, now: float, seconds: float) -> None:
        """It took `seconds`. The next one waits twice as many times as long."""
        self._next = now + self._wait * seconds
        self._wait = min(2 * self._wait, LONGEST_WAIT)


class ActiveThreads:
    """The number of threads to use, `size`, at most `most`, for steps that take as long as their work is large.

    Where threads wait too long for each other, one after the other is left out until they do not, and the best of these
    sizes is kept. From time to time one more is tried.
    """

    def __init__(self, most: int) -> None:
        self.most = self.size = most
        self._fewer, self._more = Attempts(), Attempts()
        self._paces: dict[int, float] = {}  # of the sizes tried in the present attempt; empty: there is none
        self._rising = False
        self._spent = 0.0
        self._end = 0.0
        self._work, self._seconds, self._idle = 0, 0.0, 0.0

    def note(self, start: float, end: float, work: int, idle: float) -> None:
        """A step from `start` to `end`, in seconds, that did `work` and in which `idle` threads on average waited."""
        if start - self._end > PAUSE:
            self._settle(end)
            self._clear()
            self._more = Attempts()
        self._end = end
        self._work += work
        self._seconds += end - start
        self._idle += idle * (end - start)
        if self._seconds >= WINDOW:
            self._decide(end, self._seconds / self._work, self._idle / self._seconds)
            self._clear()

    def _clear(self) -> None:
        self._work, self._seconds, self._idle = 0, 0.0, 0.0

    def _decide(self, now: float, pace: float, idle: float) -> None:
        """The size of the next window, after one that took `pace` seconds for its unit of work."""
        fewer = idle > TOO_IDLE and self.size > 1
        if self._paces:
            self._paces[self.size] = pace
            self._spent += self._seconds
            if fewer and not self._rising:
                self.size -= 1
            else:
                self._settle(now)
        elif self._fewer.due(now) if fewer else (self.size < self.most and self._more.due(now)):
            self._paces, self._spent, self._rising = {self.size: pace}, 0.0, not fewer
            self.size += -1 if fewer else 1

    def _settle(self, now: float) -> None:
        """End an attempt: the largest size that is about as fast as any."""
        if not self._paces:
            return
        attempts, before = (self._more if self._rising else self._fewer), next(iter(self._paces))
        best = min(self._paces.values())
        self.size = max(size for size, pace in self._paces.items() if pace <= WORTH * best)
        if self.size == before:
            attempts.failed(now, self._spent)
        else:
            attempts.succeeded()
        if self.size < before:
            self._more.failed(now, self._spent)
        self._paces = {}
