"""`Gemma`: a model file opened for use. The API of this package.

with Gemma("model.gguf") as model:
    for piece in model.stream("The capital of France is", max_tokens=64):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from edge_gemma.config import GemmaConfig
from edge_gemma.cores import default_threads
from edge_gemma.engine import Cancelled, ChunkProgress, Engine
from edge_gemma.errors import EdgeGemmaError
from edge_gemma.generate import FinishReason, Generation, Timings, Usage
from edge_gemma.gguf import GgufFile
from edge_gemma.plan import MemoryPlan, default_chunk, require_budget
from edge_gemma.sampler import Sampler, SamplingParams
from edge_gemma.stops import StopStrings
from edge_gemma.tokenizer import Tokenizer
from edge_gemma.weights import Weights

DEFAULT_CONTEXT = 8192
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

    The model is busy with it from the first piece to the last; `close` ends it early, as dropping it does.
    """

    def __init__(self, pieces: Generator[str], generation: Generation) -> None:
        self._pieces = pieces
        self._generation = generation

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Let go of the model. Idempotent; further pieces are not made."""
        self._pieces.close()

    @property
    def completion(self) -> Completion:
        """Text, ids, usage and timings; the finish reason is "cancelled" until there is another."""
        made = self._generation
        return Completion(made.text, made.token_ids, made.finish_reason or "cancelled", made.usage, made.timings)


class Gemma:
    """A Gemma model in a GGUF file.

    Calls from several threads wait for each other; `cancel` may be called from any thread at any time. The weights
    stay in the mapped file, which must not be changed while it is open.
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

        Raises ModelFormatError, ContextOverflowError, MemoryBudgetError, OSError.
        """
        _check_range("threads", threads, 1, MAX_THREADS)
        _check_range("chunk", chunk, 1, 4096)
        _check_range("context", context, 1, 2**22)
        if kv_type not in ("f16", "f32"):
            raise ValueError(f"kv_type: {kv_type!r} is neither 'f16' nor 'f32'")
        if load not in ("map", "copy"):
            raise ValueError(f"load: {load!r} is neither 'map' nor 'copy'")
        self._busy = threading.Lock()
        self._owner: int | None = None
        self._engine: Engine | None = None
        self._closing = False
        self._cancels = 0
        self._streams: weakref.WeakSet[Generator[Any]] = weakref.WeakSet()
        self._file = GgufFile.open(path, load=load)
        try:
            self.config = GemmaConfig.from_gguf(self._file)
            weights = Weights.bind(self._file, self.config)
            self.context = context or min(self.config.context_length, DEFAULT_CONTEXT)
            self.threads = threads or default_threads()
            rows = chunk or default_chunk(self.config)
            budget = psutil.virtual_memory().available
            self.plan: MemoryPlan = require_budget(
                self.config, weights, self.context, budget, chunk=rows, kv_type=kv_type, threads=self.threads
            )
            self.tokenizer = Tokenizer.from_gguf(self._file)
            self._engine = Engine(
                self._file,
                self.config,
                weights,
                context=self.context,
                chunk=rows,
                threads=self.threads,
                kv_type=kv_type,
                progress=progress,
            )
            self._release = weakref.finalize(self, self._engine.close)
        except BaseException:
            self.close()
            raise

    # ---- text ----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, at most one BOS in front. Control tokens spelled in it stay text unless asked for."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens have none."""
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
        pieces = self._pieces(generation, self._cancels)
        self._streams.add(pieces)
        return Stream(pieces, generation)

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

        The bits do not depend on `chunk`, nor on the number of threads. Raises ValueError, ContextOverflowError, and
        EdgeGemmaError when cancelled.
        """
        with self._exclusive() as engine:
            engine.reset()
            try:
                return engine.logits(_token_ids("ids", ids), chunk)
            except Cancelled:
                raise EdgeGemmaError("cancelled") from None

    def logits_chunks(self, ids: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """What `logits` gives, `rows` positions at a time, (at most rows, vocabulary): for texts of any length.

        The model is busy with it from the first chunk to the last, or until it is dropped. Raises as `logits` does.
        """
        _check_range("rows", rows, 1, 4096)
        checked = self._opened().check(_token_ids("ids", ids)).tolist()
        chunks = self._logits_chunks(checked, rows)
        self._streams.add(chunks)
        return chunks

    def cancel(self) -> None:
        """End the generation in progress, if there is one, soon, and streams that were made but not begun.

        From any thread.
        """
        self._cancels += 1
        engine = self._engine
        if engine is not None:
            engine.cancel()

    def close(self) -> None:
        """Free threads and memory. Idempotent; what is in progress is cancelled first, in whatever thread it is."""
        self._closing = True
        while self._engine is not None and not self._busy.acquire(timeout=0.02):
            self.cancel()  # again and again: a call that was about to begin starts by forgetting earlier ones
            self._end_suspended_streams()
        if self._engine is not None:
            self._engine = None
            self._release()
            self._busy.release()
        self._file.close()

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
        _check_range("max_tokens", max_tokens, 1, 2**31)
        ids = self.tokenize(prompt) if isinstance(prompt, str) else _token_ids("prompt", prompt)
        self._opened().check(ids)
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"on_progress: {on_progress!r} cannot be called")
        stops = _stop_strings(stop)
        sampler = Sampler(SamplingParams(**sampling))
        return Generation(self._opened(), self.tokenizer, ids, max_tokens, sampler, stops, on_progress)

    def _pieces(self, generation: Generation, cancels: int) -> Generator[str]:
        """`cancels`: as many as there had been when the generation was asked for."""
        with self._exclusive() as engine:
            engine.reset()
            try:
                if self._cancels != cancels:  # counted before the engine is told, so none is lost
                    raise Cancelled
                yield from generation
            except Cancelled:
                generation.finish_reason = "cancelled"

    def _logits_chunks(self, ids: list[int], rows: int) -> Generator[NDArray[np.float32]]:
        with self._exclusive() as engine:
            engine.reset()
            try:
                for start in range(0, len(ids), rows):
                    yield engine.logits(ids[start : start + rows])
            except Cancelled:
                raise EdgeGemmaError("cancelled") from None

    @contextmanager
    def _exclusive(self) -> Iterator[Engine]:
        """Wait for other threads' calls. A second call inside one's own unfinished stream would wait for ever."""
        if self._owner == threading.get_ident() and self._busy.locked():
            raise EdgeGemmaError("this thread has an unfinished stream of this model; close it first")
        with self._busy:
            self._owner = threading.get_ident()
            try:
                yield self._opened()
            finally:
                self._owner = None

    def _end_suspended_streams(self) -> None:
        """End streams that wait to be asked for their next piece, and would keep the model busy for ever."""
        for pieces in list(self._streams):
            state = inspect.getgeneratorstate(pieces)
            if state == inspect.GEN_RUNNING and self._owner == threading.get_ident():
                raise EdgeGemmaError("a callback of this model cannot close it; cancel it instead")
            if state == inspect.GEN_SUSPENDED:
                with suppress(ValueError):  # another thread asked for a piece just now; the cancel will end it
                    pieces.close()

    def _opened(self) -> Engine:
        if self._engine is None or self._closing:
            raise EdgeGemmaError("the model is closed")
        return self._engine


def _token_ids(name: str, ids: Sequence[int]) -> list[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence | np.ndarray):
        raise TypeError(f"{name}: expected token ids, got {type(ids).__name__}")
    return list(ids)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(stop, str | Sequence):
        raise TypeError(f"stop: expected a string or several, got {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    StopStrings(stops)  # raises here, not at the first piece
    return stops


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is no integer in {low}..{high}")
