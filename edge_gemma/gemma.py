"""`Gemma`: a model file opened for use. The API of this package.

    with Gemma("model.gguf") as model:
        for piece in model.stream("The capital of France is", max_tokens=64):
            print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from edge_gemma.sampler import SamplingParams
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
        threads: by default one for each physical performance core. kv_type: precision of the key-value cache.
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
        self._busy = threading.Lock()
        self._owner: int | None = None
        self._engine: Engine | None = None
        self._file = GgufFile.open(path, load=load)
        try:
            self.config = GemmaConfig.from_gguf(self._file)
            weights = Weights.bind(self._file, self.config)
            size = context or min(self.config.context_length, DEFAULT_CONTEXT)
            rows = chunk or default_chunk(self.config)
            budget = psutil.virtual_memory().available
            self.plan: MemoryPlan = require_budget(self.config, weights, size, budget, chunk=rows, kv_type=kv_type)
            self.tokenizer = Tokenizer.from_gguf(self._file)
            self._engine = Engine(
                self._file,
                self.config,
                weights,
                context=size,
                chunk=rows,
                threads=threads or default_threads(),
                kv_type=kv_type,
                progress=progress,
            )
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
    ) -> Iterator[str]:
        """The continuation of `prompt` (text or token ids), piece by piece, ending at `max_tokens` or a stop.

        sampling: the fields of `SamplingParams`: temperature, top_k, top_p, min_p, repetition_penalty,
        presence_penalty, frequency_penalty, penalty_last_n, seed. on_progress(done, total) reports prompt tokens.
        Arguments are checked now, not at the first piece. Raises ValueError, ContextOverflowError.
        """
        return self._pieces(self._generation(prompt, max_tokens, stop, on_progress, sampling))

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
        generation = self._generation(prompt, max_tokens, stop, on_progress, sampling)
        for _ in self._pieces(generation):
            pass
        reason = generation.finish_reason or "cancelled"
        return Completion(generation.text, generation.token_ids, reason, generation.usage, generation.timings)

    def logits(self, ids: Sequence[int], *, chunk: int | None = None) -> NDArray[np.float32]:
        """Logits of every position, float32 (len(ids), vocabulary), from an empty cache; cut into `chunk` rows.

        The bits do not depend on `chunk`, nor on the number of threads. Raises ValueError, ContextOverflowError.
        """
        with self._exclusive() as engine:
            engine.reset()
            return engine.logits(list(ids), chunk)

    def cancel(self) -> None:
        """End the generation in progress, if there is one, soon. From any thread."""
        if self._engine is not None:
            self._engine.cancel()

    def close(self) -> None:
        """Free threads and memory. Idempotent; a generation in progress is cancelled first."""
        if self._engine is not None:
            self._engine.cancel()
            with self._busy:
                engine, self._engine = self._engine, None
                if engine is not None:
                    engine.close()
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
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        engine = self._opened()
        engine.check(ids)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        params = SamplingParams(**sampling)
        return Generation(engine, self.tokenizer, ids, max_tokens, params, stops, on_progress)

    def _pieces(self, generation: Generation) -> Iterator[str]:
        with self._exclusive() as engine:
            engine.reset()
            try:
                yield from generation
            except Cancelled:
                generation.finish_reason = "cancelled"

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

    def _opened(self) -> Engine:
        if self._engine is None:
            raise EdgeGemmaError("the model is closed")
        return self._engine


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is no integer in {low}..{high}")
