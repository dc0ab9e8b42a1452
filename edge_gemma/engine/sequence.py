"""A sequence: token ids, how many of them have keys and values, and what becomes of the logits after them.

Knows no kernel, no thread and no file. The scheduler decides when how many of its tokens are computed; the engine's
thread gives it the logits that it wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.engine.answer import Delta, FinishReason, Writer
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.pages import Table
from edge_gemma.engine.sampler import Sampler
from edge_gemma.engine.speculation import Speculation
from edge_gemma.errors import Cancelled

log = logging.getLogger(__name__)

Logits = NDArray[np.float32]

WORTH_KEEPING = 32
"""Tokens added to a text at once that make it worth a place in the prefix cache."""


@dataclass(frozen=True)
class PromptRead:
    """Prompt tokens read, of how many."""

    done: int
    total: int


class Sequence:
    """What all sequences have in common. `tokens` may only grow at its end.

    priority: larger goes first. deadline: of `time.monotonic`, after which it ends.
    """

    tokens: list[int]
    table: Table | None = None
    priority: int = 0
    deadline: float = float("inf")
    cacheable = True
    """Whether a prefix that is there already may be used, and this one kept for others."""
    alone = False
    """Whether it wants steps of its own."""
    keeps_table = False
    """Whether somebody goes on with its table when it has ended."""
    number = 0
    """The order in which sequences began."""
    ended = False
    failed = False
    """Ended by an error."""
    cancelled = False
    """Set by any thread; seen by the engine's at the next step."""

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are there."""
        return self.table.length if self.table else 0

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last token are computed."""
        return self.pending == 1

    def has_room(self) -> bool:
        """Whether its reader keeps up."""
        raise NotImplementedError

    def wanted(self, count: int) -> int:
        """Of how many of the next `count` tokens, the last ones, logits are wanted."""
        return int(count >= self.pending)

    def prepare(self) -> None:
        """By the engine, before it looks at `table`. What this raises ends the sequence."""

    def begin(self, cached: int) -> None:
        """The engine begins with it, or begins again; `cached` tokens were computed already."""

    def read(self) -> None:
        """More tokens were computed; the logits of none were wanted."""

    def take(self, logits: Logits, maxima: Logits | None) -> None:
        """More tokens were computed; `logits`, (wanted, V), are those that were wanted, to be copied if kept.

        maxima: of their groups, (wanted, groups), for samplers. Raises NumericalError.
        """
        raise NotImplementedError

    def end(self, error: BaseException | None = None, reason: FinishReason | None = None) -> None:
        """It is over: because of an error, for a reason from outside, or since it has all it wanted. Idempotent."""
        raise NotImplementedError


class Generation(Sequence):
    """A prompt and its continuation.

    It goes to `channel` as `PromptRead` and `Delta`. `choices`: others with the same prompt, which begin once it is
    read.
    """

    def __init__(
        self,
        prompt: Ids[int],
        writer: Writer,
        sampler: Sampler,
        channel: Channel[PromptRead | Delta],
        *,
        priority: int = 0,
        deadline: float = float("inf"),
        choices: Ids[Generation] = (),
        speculation: Speculation | None = None,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.writer, self.sampler, self.channel = writer, sampler, channel
        self.priority, self.deadline = priority, deadline
        self.choices = list(choices)
        self.speculation = speculation
        self.proposal: list[int] = []
        """Tokens that may well come next, to be computed together with the last one."""
        self._told = -1
        """Prompt tokens that the reader knows to be read."""

    def has_room(self) -> bool:
        """Whether the reader keeps up. Nobody has to read before there is a token."""
        return len(self.tokens) == self.prompt_length or self.channel.has_room()

    def begin(self, cached: int) -> None:
        """Tell the reader where reading begins. Beginning again is no matter of the reader's."""
        if self._told < 0:
            self.writer.begin()
            self.writer.cached_tokens = cached
        self._tell(cached)

    def read(self) -> None:
        """Tell how far the prompt is read."""
        self._tell(self.computed)

    def _tell(self, done: int) -> None:
        """Progress goes forward only, also where a sequence that had no room is computed again."""
        if self._told < done <= self.prompt_length:
            self._told = done
            self.channel.put(PromptRead(done, self.prompt_length))

    def wanted(self, count: int) -> int:
        """The last token's logits, and those after each proposed one."""
        return 1 + len(self.proposal) if count >= self.pending else 0

    def propose(self, room: int) -> None:
        """Have at most `room` tokens more computed in the next step, where that is likely to pay."""
        left = self.writer.max_tokens - self.writer.written - 1
        if self.speculation and self.decoding and min(room, left) > 0:
            try:
                self.proposal = self.speculation.propose(self.tokens, min(room, left))
            except Exception:  # a draft model's: the answer does without
                log.warning("proposing tokens has failed", exc_info=True)
                self.propose_no_more()

    def propose_no_more(self) -> None:
        """Go on token by token."""
        speculation, self.speculation = self.speculation, None
        if speculation:
            speculation.close()

    def take(self, logits: Logits, maxima: Logits | None) -> None:
        """Choose a token, and of a proposal as many as it foretold."""
        self.writer.prompt_read()
        self._tell(self.prompt_length)
        speculation, proposal, accepted = self.speculation, self.proposal, 0
        self.proposal = []
        for i, proposed in enumerate([*proposal, None]):
            found = None if maxima is None else maxima[i]
            token = self.sampler.sample(logits[i], found, self.tokens, len(self.tokens))
            self.tokens.append(token)
            self.channel.put(self.writer.write(token))
            if self.writer.finish_reason:
                self.end()
            if self.ended or token != proposed:
                break
            accepted += 1
        if speculation and proposal:
            speculation.note(accepted if self.ended else len(proposal), accepted)
        if self.table is not None and self.computed >= len(self.tokens):
            self.table.truncate(len(self.tokens) - 1)  # rows of tokens that were proposed and are not the text's

    def end(self, error: BaseException | None = None, reason: FinishReason | None = None) -> None:
        """Tell the reader; what is unread is dropped where it was ended from outside."""
        self.ended, self.failed = True, self.failed or error is not None
        if reason:
            self.writer.finish_reason = self.writer.finish_reason or reason
        self.channel.end(error, discard=reason == "cancelled")
        if self.speculation:
            self.speculation.close()
        for choice in self.choices:
            choice.cancelled = choice.cancelled or self.cancelled
            choice.end(error, reason)


class Held:
    """The table of a text that outlives its extensions, of which there is one at a time. For the engine's thread.

    Whatever breaks off an extension, the table's first positions are those of the text, as far as both reach.
    """

    def __init__(self) -> None:
        self.table: Table | None = None
        self.extension: Extension | None = None
        self.closed = False

    def begin(self, extension: Extension, length: int) -> None:
        """Have the table go on after `length` tokens. One that was left behind ends. Raises Cancelled when closed."""
        if self.closed:
            raise Cancelled("the sequence is closed")
        if self.extension is not extension:
            self.end_extension()
            self.extension = extension
        self.truncate(length)

    def end_extension(self) -> None:
        """End the extension that runs, if there is one."""
        if self.extension is not None:
            self.extension.end(Cancelled("the sequence is closed" if self.closed else "cancelled"))

    def truncate(self, length: int) -> None:
        """At most the first `length` positions. What a windowed layer has given back is read again: there are none."""
        if self.table is None or self.table.length <= length:
            return
        if self.table.can_truncate(length):
            self.table.truncate(length)
        else:
            self.release()

    def fork(self, length: int) -> Table | None:
        """Another table of the first `length` positions, if there are any."""
        self.truncate(length)
        return self.table.fork() if self.table is not None else None

    def release(self) -> None:
        """Let go of the table."""
        table, self.table = self.table, None
        if table is not None:
            table.release()

    def close(self) -> None:
        """Let go of all, for good."""
        self.closed = True
        self.end_extension()
        self.release()


class Extension(Sequence):
    """More tokens of a text that somebody else keeps. The logits after the last one go to `channel`, a copy (V,)."""

    keeps_table = True

    def __init__(self, tokens: Ids[int], known: int, held: Held, channel: Channel[Logits]) -> None:
        """`known` of the tokens are those of the text, whose table `held` has; afterwards it is that of all."""
        self.tokens, self._known, self._held, self.channel = list(tokens), known, held, channel
        self._before = 0
        """Tokens that were computed before it began."""

    @property
    def table(self) -> Table | None:
        """The text's, while this extends it."""
        return self._held.table

    @table.setter
    def table(self, table: Table | None) -> None:
        self._held.table = table

    @property
    def cacheable(self) -> bool:  # type: ignore[override]
        """Token by token there would soon be nothing else in the cache."""
        return len(self.tokens) - self._before >= WORTH_KEEPING

    def prepare(self) -> None:
        """Have the text's table go on where this one begins. Raises Cancelled where the text was closed."""
        self._held.begin(self, self._known)
        self._before = self.computed

    def has_room(self) -> bool:
        """Always: there is one item."""
        return True

    def take(self, logits: Logits, maxima: Logits | None) -> None:
        """The end of it."""
        self.channel.put(logits[-1].copy())
        self.end()

    def end(self, error: BaseException | None = None, reason: FinishReason | None = None) -> None:
        """An end from outside is an error: there is no result."""
        self.ended, self.failed = True, self.failed or error is not None
        if self._held.extension is self:
            self._held.extension = None
        self.channel.end(Cancelled() if reason else error)


class AllLogits(Sequence):
    """Logits of every token, which go to `channel` `rows` positions at a time, each an array of its own (rows, V)."""

    cacheable = False
    alone = True

    def __init__(
        self, tokens: Ids[int], rows: int, most: int, allocate: Callable[[int], Logits], channel: Channel[Logits]
    ) -> None:
        """`most`: tokens of a step. `allocate`: memory for logits of so many positions."""
        self._all, self._rows, self._most, self._allocate = list(tokens), rows, most, allocate
        self.channel = channel
        self._item: Logits | None = None
        self._taken = 0
        """Positions whose logits were taken: more than those computed where the sequence has begun again."""
        self._extend()

    def _extend(self) -> None:
        """What the next step may compute: up to the end of an item."""
        self._end = min((self._taken // self._rows + 1) * self._rows, len(self._all))
        self.tokens = self._all[: min(self._end, self._taken + self._most)]

    def has_room(self) -> bool:
        """Whether the reader keeps up: arrays are large."""
        return self.channel.has_room()

    def wanted(self, count: int) -> int:
        """All that were not taken yet."""
        return max(0, min(count, self.computed + count - self._taken))

    def take(self, logits: Logits, maxima: Logits | None) -> None:
        """Keep them, and go on. Raises MemoryBudgetError."""
        start = self._taken // self._rows * self._rows
        if self._item is None:
            self._item = self._allocate(self._end - start)
        self._item[self._taken - start : self.computed - start] = logits
        self._taken = self.computed
        if self._taken == self._end:
            self.channel.put(self._item)
            self._item = None
        self._extend()
        if self._taken == len(self._all):
            self.end()

    def end(self, error: BaseException | None = None, reason: FinishReason | None = None) -> None:
        """An end from outside is an error: there is no result."""
        self.ended = True
        self.channel.end(Cancelled() if reason else error, discard=reason == "cancelled")
