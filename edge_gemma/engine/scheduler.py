"""Which sequences run, and how many tokens of each are in the next step. Knows no kernel, no text and no thread.

A step has the next token of every sequence that is past its prompt, and a piece of one prompt, so large that the step
takes about `max_stall` seconds at most: nobody who reads an answer waits longer because others came. No logit depends
on any of these choices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from edge_gemma.engine.sequence import Sequence

LEAST_PIECE = 32
"""Tokens of a prompt that are worth a step, whatever it takes."""
TURN_OF_LOWER = 4
"""Every fourth free place is for whoever has waited longest, whatever the priority."""
SMOOTHING = 0.3
"""Of a new measurement in the mean."""


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a sequence are computed."""

    sequence: Sequence
    count: int


class Pace:
    """How long steps take: for a row of a long step, and for a step that has single rows only."""

    def __init__(self) -> None:
        self.row = 0.0
        self.short = 0.0

    def note(self, rows: int, singles: int, seconds: float) -> None:
        """A step of `rows`, `singles` of them next tokens, took `seconds`."""
        if rows == singles:
            self.short += (SMOOTHING if self.short else 1.0) * (seconds - self.short)
        elif rows >= LEAST_PIECE:
            self.row += (SMOOTHING if self.row else 1.0) * (seconds / rows - self.row)

    def rows_in(self, seconds: float) -> int:
        """Rows that a step may have, to take so long."""
        return int(seconds / self.row) if self.row else LEAST_PIECE


class Scheduler:
    """The sequences that wait and those that run.

    slots: sequences that run at a time, at most. chunk: most rows of a step. max_stall: seconds of a step with others.
    """

    def __init__(self, slots: int, chunk: int, max_stall: float = 0.15) -> None:
        self.slots = min(slots, max(1, chunk - 1))  # a piece of a prompt must fit beside all others
        self.chunk, self.max_stall = chunk, max_stall
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.pace = Pace()
        self._started = 0
        self._crowded = False
        self._others_turn = False

    def add(self, sequence: Sequence) -> None:
        """Put it in the line."""
        self.waiting.append(sequence)

    def put_back_last(self) -> Sequence | None:
        """The one that began last waits again, before all others, until one has ended. None: there is one only."""
        if len(self.running) < 2:
            return None
        last = max(self.running, key=lambda s: s.number)
        self.running.remove(last)
        self.waiting.insert(0, last)
        self._crowded = True
        return last

    def discard(self, sequence: Sequence) -> None:
        """Take out one that has ended, if it is there."""
        self.running = [s for s in self.running if s is not sequence]
        self.waiting = [s for s in self.waiting if s is not sequence]

    def remove_ended(self) -> list[Sequence]:
        """Take out those that have ended; they are returned."""
        ended = [s for s in (*self.running, *self.waiting) if s.ended]
        self.running = [s for s in self.running if not s.ended]
        self._crowded = self._crowded and not ended and bool(self.running)
        self.waiting = [s for s in self.waiting if not s.ended]
        return ended

    def start(self) -> Iterator[Sequence]:
        """Sequences that begin now, since there is room for them: one whose reader does not keep up takes no place."""
        taken = sum(s.has_room() for s in self.running) if self.waiting else 0
        while self.waiting and taken < self.slots and not self._crowded:
            taken += 1
            self._started += 1
            best = (
                0
                if self._started % TURN_OF_LOWER == 0
                else max(range(len(self.waiting)), key=lambda i: (self.waiting[i].priority, -i))
            )
            sequence = self.waiting.pop(best)
            sequence.number = self._started
            self.running.append(sequence)
            yield sequence

    def next_step(self) -> list[Work]:
        """What the next step computes; nothing if no sequence can go on."""
        ready = [s for s in self.running if not s.ended and s.has_room()]
        shared = [s for s in ready if not s.alone]
        decoding = self._in_turn([s for s in shared if s.decoding])
        long = sorted((s for s in ready if s.alone or not s.decoding), key=lambda s: -s.priority)
        if not long:
            return [Work(s, 1) for s in decoding]
        first = long[0]
        if first.alone and decoding:
            self._others_turn = not self._others_turn
            if self._others_turn:
                return [Work(s, 1) for s in decoding]
        self._to_the_end(first)
        piece = Work(first, self._piece(first, len(decoding)))
        return [piece] if first.alone else [*(Work(s, 1) for s in decoding), piece]

    def note(self, step: list[Work], seconds: float) -> None:
        """How long a step took."""
        self.pace.note(sum(w.count for w in step), sum(w.count == 1 for w in step), seconds)

    def _piece(self, sequence: Sequence, decoding: int) -> int:
        """Tokens of a prompt for the next step, in which `decoding` others have one."""
        room = self.chunk - (0 if sequence.alone else decoding)
        if decoding:
            room = min(room, max(LEAST_PIECE, self.pace.rows_in(self.max_stall) - decoding))
        return max(1, min(sequence.pending, room))

    def _in_turn(self, decoding: list[Sequence]) -> list[Sequence]:
        """Those of the next step: all, or where readers came back to more than there are slots, some by turns."""
        if len(decoding) <= self.slots:
            return decoding
        for sequence in decoding[: self.slots]:
            self._to_the_end(sequence)
        return decoding[: self.slots]

    def _to_the_end(self, sequence: Sequence) -> None:
        """Those who read prompts take turns."""
        self.running.remove(sequence)
        self.running.append(sequence)


def expired(sequence: Sequence) -> bool:
    """Whether its time is over."""
    return sequence.deadline < time.monotonic()
