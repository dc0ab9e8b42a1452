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
"""Every fourth free place, and piece of a prompt, is for whoever has waited longest, whatever the priority."""
SMOOTHING = 0.3
"""Of a new measurement in the mean."""


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a sequence are computed."""

    sequence: Sequence
    count: int


class Pace:
    """How long a row of a long step takes."""

    def __init__(self) -> None:
        self.row = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """A step of `rows` took `seconds`."""
        if rows >= LEAST_PIECE:
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
        self._started = self._read = 0
        self._crowded = False
        """Whether there is no memory for more."""
        self._others_turn = False

    def add(self, sequence: Sequence) -> None:
        """Put it in the line."""
        self.waiting.append(sequence)

    def put_back(self) -> Sequence | None:
        """One waits again, before all others, until one has ended or none can go on. None: there is one only.

        It is one that could not go on anyway, since its reader does not keep up; else the one that began last.
        """
        if len(self.running) < 2:
            return None
        last = max(self.running, key=lambda s: (not s.has_room(), s.number))
        self.running.remove(last)
        self.waiting.insert(0, last)
        self._crowded = True
        return last

    def remove_ended(self) -> list[Sequence]:
        """Take out those that have ended; they are returned."""
        ended = [s for s in (*self.running, *self.waiting) if s.ended]
        self.running = [s for s in self.running if not s.ended]
        self._crowded = self._crowded and not ended and bool(self.running)
        self.waiting = [s for s in self.waiting if not s.ended]
        return ended

    def start(self) -> Iterator[Sequence]:
        """Sequences that begin now, since there is room for them: one whose reader does not keep up takes no place."""
        if not self.waiting:
            return
        taken = sum(s.has_room() for s in self.running)
        self._crowded = self._crowded and taken > 0
        if taken >= self.slots or self._crowded:
            return
        able = [s for s in self.waiting if s.has_room()]
        while able and taken < self.slots:
            taken += 1
            self._started += 1
            sequence = able[0] if self._started % TURN_OF_LOWER == 0 else max(able, key=lambda s: s.priority)
            able.remove(sequence)
            self.waiting.remove(sequence)
            sequence.number = self._started
            self.running.append(sequence)
            yield sequence

    def next_step(self) -> list[Work]:
        """What the next step computes; nothing if no sequence can go on."""
        ready = [s for s in self.running if not s.ended and s.has_room()]
        shared = [s for s in ready if not s.alone]
        decoding = self._in_turn([s for s in shared if s.decoding])
        singles = [Work(s, 1) for s in decoding]
        long = [s for s in ready if s.alone or not s.decoding]
        if not long:
            return singles
        first = long[0] if (self._read + 1) % TURN_OF_LOWER == 0 else max(long, key=lambda s: s.priority)
        beside = not first.alone and len(decoding) < self.chunk
        if decoding and not beside:
            self._others_turn = not self._others_turn
            if self._others_turn:
                return singles
        self._read += 1
        self._to_the_end(first)
        piece = Work(first, self._piece(first, len(decoding), beside))
        return [*singles, piece] if beside else [piece]

    def note(self, step: list[Work], seconds: float) -> None:
        """How long a step took."""
        self.pace.note(sum(w.count for w in step), seconds)

    def _piece(self, sequence: Sequence, decoding: int, beside: bool) -> int:
        """Tokens of a prompt for the next step, while `decoding` others have one each, `beside` it or in the next."""
        room = self.chunk - (decoding if beside else 0)
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
