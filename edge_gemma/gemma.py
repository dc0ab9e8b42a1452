"""`Gemma`: a model file opened for use. The API of this package.

with Gemma("model.gguf") as model:
    for piece in model.stream("The capital of France is", max_tokens=64):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.engine.generate import FinishReason, Generation, Timings, Usage
from edge_gemma.engine.memory_plan import MemoryPlan
from edge_gemma.engine.runner import ChunkProgress, Engine, Runner
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.turns import Turn, Turns
from edge_gemma.errors import Cancelled
from edge_gemma.text.stop_strings import StopStrings
from edge_gemma.text.tokenizer import Tokenizer

MAX_THREADS = 256
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """A finished answer. `timings` is None if it was cancelled before the prompt was read."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings | None


class Stream(Iterator[str]):
    """The pieces of an answer, made while they are asked for. `completion` is what there is so far.

    Any thread may ask for the next piece. Other calls wait from the first piece to the last; `close` ends it early, as
    dropping it does. If a call waits and no piece is asked for in a second, that call goes first, and this stream goes
    on after it, with the same text: only its next piece takes longer, as everything before it is read again.
    """

    def __init__(self, turn: Turn[str], generation: Generation) -> None:
        self._turn = turn
        self._generation = generation

    def __next__(self) -> str:
        try:
            return next(self._turn)
        except Cancelled:
            raise StopIteration from None

    def close(self) -> None:
        """Let go of the model. Idempotent, from any thread; further pieces are not made."""
        self._turn.close()

    @property
    def completion(self) -> Completion:
        """Text, ids, usage and timings; the finish reason is "cancelled" until there is another."""
        made = self._generation
        return Completion(made.text, made.token_ids, made.finish_reason or "cancelled", made.usage, made.timings)


class Gemma:
    """A Gemma model in a GGUF file.

    Calls from several threads wait for each other, in the order in which they came; `cancel` may be called from any
    thread at any time. The weights stay in the mapped file, which must not be changed while it is open.

    On an async server, where each `next(stream)` is run by a thread of a pool, each stream that waits for its turn
    keeps a thread waiting, too: let the pool have more threads than there are streams at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int | None = None,
        threads: int | None = None,
        kv_type: Literal["f16", "f32"] = "f16",
        *,
        chunk: int | None = None,
        load: Literal["map", "copy"] = "map",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Open `path`.

        context: tokens the model can attend to, prompt and answer; by default what it was trained for, at most 8192.
        threads: at most; by default one for each physical performance core. kv_type: precision of the key-value cache.
        chunk: most prompt tokens in one step; it bounds memory and the time until a cancel is seen, not the result.
        load: "copy" reads the whole file into memory, for disks that may go away.
        progress(done, total, kernel): called while kernels are compiled, on the first run on a machine.

        Raises ModelFormatError, ContextOverflowError, MemoryBudgetError, OSError; TypeError or ValueError naming the
        argument.
        """
        threads = arguments.optional_integer("threads", threads, 1, MAX_THREADS)
        chunk = arguments.optional_integer("chunk", chunk, 1, 4096)
        context = arguments.optional_integer("context", context, 1, 2**22)
        arguments.choice("kv_type", kv_type, ("f16", "f32"))
        arguments.choice("load", load, ("map", "copy"))
        arguments.callback("progress", progress)
        runner = Runner(
            path, context=context, threads=threads, chunk=chunk, kv_type=kv_type, load=load, progress=progress
        )
        try:
            self.tokenizer = Tokenizer.from_gguf(runner.file)
            self._engine = Engine(runner)
        except BaseException:
            runner.close()
            raise
        self.config, self.context, self.threads = runner.config, runner.context, runner.threads
        self.plan: MemoryPlan = runner.plan
        self._turns = Turns(self._engine)
        self._release = weakref.finalize(self, self._engine.close)

    # ---- text ----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, at most one BOS in front. Control tokens spelled in it stay text unless asked for.

        Raises TypeError or ValueError naming the argument.
        """
        arguments.flag("add_bos", add_bos)
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens have none. Raises TypeError or ValueError naming the id."""
        return self.tokenizer.decode(ids)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        on_progress: ChunkProgress | None = None,
        **sampling: Any,
    ) -> Stream:
        """The continuation of `prompt` (text or token ids), piece by piece, ending at `max_tokens` or a stop.

        sampling: the fields of `SamplingParams`: temperature, top_k, top_p, min_p, repetition_penalty,
        presence_penalty, frequency_penalty, penalty_last_n, seed. on_progress(done, total) reports prompt tokens.
        Arguments are checked now, not at the first piece. Raises ValueError, TypeError, ContextOverflowError.
        """
        generation = self._generation(prompt, max_tokens, stop, on_progress, sampling)
        return Stream(Turn(self._turns, self._pieces(generation)), generation)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        on_progress: ChunkProgress | None = None,
        **sampling: Any,
    ) -> Completion:
        """The whole continuation at once; arguments as for `stream`."""
        stream = self.stream(prompt, max_tokens=max_tokens, stop=stop, on_progress=on_progress, **sampling)
        for _ in stream:
            pass
        return stream.completion

    def logits(self, ids: Sequence[int], *, chunk: int | None = None) -> NDArray[np.float32]:
        """Logits of every position, float32 (len(ids), vocabulary), from an empty cache; cut into `chunk` rows.

        The bits do not depend on `chunk`, nor on the number of threads. Raises ValueError, ContextOverflowError,
        MemoryBudgetError, and EdgeGemmaError when cancelled.
        """
        checked = self._checked("ids", ids)
        chunk = arguments.optional_integer("chunk", chunk, 1, self._engine.chunk)
        return next(self._logits_turn(checked, len(checked), chunk))

    def logits_chunks(self, ids: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """What `logits` gives, `rows` positions at a time, (at most rows, vocabulary): for texts of any length.

        The model is busy with it from the first chunk to the last, or until it is dropped. Raises as `logits` does.
        """
        rows = arguments.integer("rows", rows, 1, 4096)
        return self._logits_turn(self._checked("ids", ids), rows)

    def cancel(self) -> None:
        """End what was asked of the model so far, soon: generations in progress, half-read or not begun, and logits.

        From any thread.
        """
        self._turns.cancel()

    def close(self) -> None:
        """Free threads and memory. Idempotent; what is in progress is cancelled first, in whatever thread it is.

        Raises EdgeGemmaError in a callback of this model, and changes nothing. In a forked child it returns at once.
        """
        self._turns.close()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _generation(
        self,
        prompt: Prompt,
        max_tokens: int,
        stop: str | Sequence[str],
        on_progress: ChunkProgress | None,
        sampling: dict[str, Any],
    ) -> Generation:
        max_tokens = arguments.integer("max_tokens", max_tokens, 1, 2**31)
        ids = self._checked("prompt", self._prompt_ids(prompt) if isinstance(prompt, str) else prompt)
        arguments.callback("on_progress", on_progress)
        stops = _stop_strings(stop)
        sampler = Sampler(SamplingParams(**sampling))
        return Generation(self._engine, self.tokenizer, ids, max_tokens, sampler, stops, on_progress)

    def _checked(self, name: str, ids: Sequence[int]) -> list[int]:
        """Token ids that a sequence may begin with. Raises as the public methods do."""
        self._turns.check_open()
        checked = arguments.token_ids(name, ids, self.config.vocab_size)
        self._engine.check(checked, name)
        return checked

    def _prompt_ids(self, prompt: str) -> list[int]:
        try:
            return self.tokenize(prompt)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from error

    def _pieces(self, generation: Generation) -> Generator[str]:
        """The generation; keeps this object, and so the engine, alive."""
        yield from generation

    def _logits_turn(self, ids: list[int], rows: int, chunk: int | None = None) -> Turn[NDArray[np.float32]]:
        return Turn(self._turns, self._logits(ids, rows, chunk))

    def _logits(self, ids: list[int], rows: int, chunk: int | None) -> Generator[NDArray[np.float32]]:
        """The logits of `ids`, `rows` at a time; after another call they are read again up to there."""
        engine, sequence = self._engine, -1
        for start in range(0, len(ids), rows):
            if sequence != engine.sequence:
                engine.reset()
                sequence = engine.sequence
                if start:
                    engine.prefill(ids[:start])
            yield engine.logits(ids[start : start + rows], chunk)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(stop, str | Sequence):
        raise TypeError(f"stop: expected a string or several, got {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    StopStrings(stops)  # raises here, not at the first piece
    return stops
