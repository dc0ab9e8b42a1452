"""`Gemma`: a model file opened for use. The API of this package.

with Gemma("model.gguf") as model:
    for piece in model.stream("The capital of France is", max_tokens=64):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import os
import weakref
from _queue import SimpleQueue  # not `queue`'s, which a host may have replaced: see `kernels/native_threads.py`
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from edge_gemma import arguments
from edge_gemma.embeddings import embed
from edge_gemma.engine.answer import Delta, Writer
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.draft import open_draft
from edge_gemma.engine.loop import Engine, Stats
from edge_gemma.engine.memory_plan import MemoryPlan, page_limit
from edge_gemma.engine.runner import Runner
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import AllLogits, Generation, PromptRead
from edge_gemma.engine.sessions import Sessions
from edge_gemma.engine.speculation import DraftModel, PromptLookup, Speculation
from edge_gemma.errors import ContextOverflowError
from edge_gemma.models.architecture import Config
from edge_gemma.options import AnswerOptions
from edge_gemma.progress import Progress, TokenProgress
from edge_gemma.streams import AsyncStream, Completion, Received, Stream, when_ended
from edge_gemma.text.stop_strings import stop_strings
from edge_gemma.text.tokenizer import Tokenizer
from edge_gemma.token_sequence import TokenSequence

MAX_THREADS, MAX_SLOTS = 256, 256
SLOTS = 16
BACKLOG = 64
"""Deltas that an answer may be ahead of its reader."""
UNLIMITED = 2**62
BATCH_PRIORITY = -1
Prompt = str | Sequence[int]


class Gemma:
    """A model in a GGUF file: a Gemma, or one of the Llama family.

    Any thread may call anything at any time: answers are made side by side, each the same, token for token, as if it
    were alone. The weights stay in the mapped file, which must not be changed while it is open.

    config: the model's hyper-parameters. context: tokens a sequence can have. threads: those that compute.
    slots: answers made at a time. plan: the memory this takes. tokenizer: text to ids and back.
    """

    config: Config
    context: int
    threads: int
    slots: int
    plan: MemoryPlan
    tokenizer: Tokenizer
    _draft: Runner | None

    def __init__(
        self,
        path: str | os.PathLike[str],
        context: int | None = None,
        threads: int | None = None,
        kv_type: Literal["f16", "f32", "q8_0"] = "f16",
        *,
        chunk: int | None = None,
        slots: int = SLOTS,
        prefix_cache: int | None = None,
        max_stall: float = 0.15,
        speculate: bool = True,
        draft: str | os.PathLike[str] | None = None,
        load: Literal["map", "copy"] = "map",
        progress: Progress | None = None,
    ) -> None:
        """Open `path`.

        context: tokens the model can attend to, prompt and answer; by default what it was trained for, at most 8192.
        threads: at most; by default one for each physical performance core. kv_type: of the key-value cache's elements;
        q8_0 takes 0.53 of f16's memory. chunk: most prompt tokens in one step; it bounds memory, not the result.
        slots: answers made at a time; others wait. prefix_cache: bytes of keys and values kept for prompts that begin
        as earlier ones did; by default those of one context, 0 keeps none. max_stall: seconds that the tokens of
        running answers may wait for a piece of another's prompt. speculate: compute several likely tokens at once where
        a text repeats itself; draft: a smaller model with the same vocabulary that says which are likely. Both for an
        answer that is made alone, whose text is the same without. load: "copy" reads the whole file into memory, for
        disks that may go away.
        progress(done, total, kernel): called while kernels are compiled, on the first run on a machine.

        Raises ModelFormatError, ContextOverflowError, MemoryBudgetError, ThreadError, OSError; TypeError or ValueError
        naming the argument.
        """
        arguments.choice("kv_type", kv_type, ("f16", "f32", "q8_0"))
        arguments.choice("load", load, ("map", "copy"))
        arguments.callback("progress", progress)
        slots = arguments.integer("slots", slots, 1, MAX_SLOTS)
        stall = arguments.seconds("max_stall", max_stall)
        self._speculates, self._draft = arguments.flag("speculate", speculate), None
        kept = arguments.optional_integer("prefix_cache", prefix_cache, 0, 2**62)
        runner = Runner(
            path,
            context=arguments.optional_integer("context", context, 1, 2**22),
            threads=arguments.optional_integer("threads", threads, 1, MAX_THREADS),
            chunk=arguments.optional_integer("chunk", chunk, 1, 4096),
            kv_type=kv_type,
            load=load,
            progress=progress,
        )
        self.slots, self._runner = slots, runner
        try:
            self._start(kept, stall, draft, progress)
        except BaseException:
            runner.close()
            if self._draft is not None:
                self._draft.close()
            raise
        self._release = weakref.finalize(self, self._engine.close)

    def _start(
        self,
        kept: int | None,
        stall: float,
        draft: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> None:
        """What is made of an open runner."""
        runner = self._runner
        self.tokenizer = Tokenizer.from_gguf(runner.file)
        self.plan, self.config, self.context, self.threads = runner.plan, runner.config, runner.context, runner.threads
        kept = runner.plan.kv_cache if kept is None else kept
        runner.pool.limit_bytes = page_limit(runner.plan.kv_cache, self.slots, kept)
        if draft is not None:
            self._draft = open_draft(draft, runner, self.slots, progress)
        self._engine = Engine(runner, slots=self.slots, prefix_cache=kept, max_stall=stall, draft=self._draft)
        self._sessions = Sessions(runner, self._engine)

    # ---- text ----------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, at most one BOS in front. Control tokens spelled in it stay text unless asked for.

        `add_bos`: None does what the file says, and every Gemma has one. Raises TypeError or ValueError naming the
        argument.
        """
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens have none. Raises TypeError or ValueError naming the id."""
        return self.tokenizer.decode(ids)

    # ---- answers -------------------------------------------------------------------------------------------------

    def stream(
        self,
        prompt: Prompt,
        *,
        on_progress: TokenProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Stream:
        """The continuation of `prompt` (text or token ids), as deltas of text, ending at `max_tokens` or a stop.

        options: see `AnswerOptions`. on_progress(done, total): prompt tokens read, called by whoever reads the stream.
        Arguments are checked now, not at the first delta. Raises ValueError, TypeError, ContextOverflowError.
        """
        arguments.callback("on_progress", on_progress)
        generation = self._generation(prompt, options)
        stream = Stream(self, self._engine, generation, on_progress)
        self._engine.submit(generation)
        return stream

    def astream(
        self,
        prompt: Prompt,
        *,
        on_progress: TokenProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncStream:
        """`stream` for `async for`, in a running event loop."""
        arguments.callback("on_progress", on_progress)
        generation = self._generation(prompt, options)
        stream = AsyncStream(self, self._engine, generation, on_progress)
        self._engine.submit(generation)
        return stream

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        n: None = None,
        on_progress: TokenProgress | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        n: int,
        on_progress: TokenProgress | None = ...,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Prompt,
        *,
        n: int | None = None,
        on_progress: TokenProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | list[Completion]:
        """The whole continuation at once; arguments as for `stream`. With `n`, so many: the prompt is read once.

        Choice 0 is the answer without `n`; the others have random numbers of their own, of the same seed.
        """
        arguments.callback("on_progress", on_progress)
        count = 1 if n is None else arguments.integer("n", n, 1, MAX_SLOTS)
        first = self._generation(prompt, options)
        first.choices = [self._choice(first, i) for i in range(1, count)]
        all_of_them = [first, *first.choices]
        streams = [Stream(self, self._engine, g, None if i else on_progress) for i, g in enumerate(all_of_them)]
        self._engine.submit(first)
        try:
            for stream in streams:
                for _ in stream:
                    pass
        finally:  # also where the caller is interrupted
            self._engine.cancel(*(g for g in all_of_them if not g.ended))
        made = [stream.completion for stream in streams]
        return made[0] if n is None else made

    async def agenerate(
        self,
        prompt: Prompt,
        *,
        on_progress: TokenProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion:
        """`generate`, awaited. A task that is cancelled ends the answer."""
        stream = self.astream(prompt, on_progress=on_progress, **options)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return stream.completion

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        **options: Unpack[AnswerOptions],
    ) -> Iterator[tuple[int, Completion]]:
        """Continuations of many prompts: (number of the prompt, continuation), each as soon as it is finished.

        Prompts are taken as there is room for them, so there may be any number; other answers go first where the
        priority is not given. Raises TypeError for one prompt instead of several, and what a prompt's arguments or its
        answer raise, when it comes to it; leaving the iteration ends what is not finished.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts: expected several, got {arguments.shown(prompts)}")
        self._engine.check_open()
        return self._many(iter(prompts), options)

    def _many(self, prompts: Iterator[Prompt], options: AnswerOptions) -> Iterator[tuple[int, Completion]]:
        finished: SimpleQueue[int] = SimpleQueue()
        running: dict[int, Received] = {}
        source = enumerate(prompts)
        try:
            while True:
                while len(running) < 2 * self.slots and (following := next(source, None)):
                    number, prompt = following
                    generation = self._generation(prompt, options, BATCH_PRIORITY, UNLIMITED)
                    generation.channel.on_item = when_ended(generation, finished, number)
                    running[number] = Received(generation)
                    self._engine.submit(generation)
                if not running:
                    return
                self._engine.check_process()
                number = finished.get()
                received = running.pop(number)
                for item in received.generation.channel:
                    received.add(item)
                received.check_end()
                yield number, received.completion
        finally:
            self._engine.cancel(*(received.generation for received in running.values()))

    def sequence(self) -> TokenSequence:
        """A text that is read and continued under the caller's hands, token by token."""
        self._check_continues()
        return TokenSequence(self, self._engine, self.tokenizer, self._sessions)

    def load_sequence(self, path: str | os.PathLike[str]) -> TokenSequence:
        """A sequence that `TokenSequence.save` has written, as it was, on whatever CPU; its prefix serves others, too.

        Raises SessionError naming the reason where the file is damaged, or of other weights, another chat template,
        kv_type or version; ContextOverflowError, MemoryBudgetError, OSError.
        """
        self._engine.check_open()
        return TokenSequence(self, self._engine, self.tokenizer, self._sessions, *self._sessions.load(path))

    # ---- numbers -------------------------------------------------------------------------------------------------

    def logits(self, ids: Sequence[int], *, chunk: int | None = None) -> NDArray[np.float32]:
        """Logits of every position, float32 (len(ids), vocabulary), computed in pieces of at most `chunk` rows.

        The bits do not depend on `chunk`, the number of threads or what runs beside. Raises ValueError,
        ContextOverflowError, MemoryBudgetError, and EdgeGemmaError when cancelled.
        """
        checked = self._checked("ids", ids)
        rows = arguments.optional_integer("chunk", chunk, 1, self._runner.chunk)
        return next(self._logits(checked, len(checked), rows or len(checked)))

    def logits_chunks(self, ids: Sequence[int], rows: int) -> Iterator[NDArray[np.float32]]:
        """What `logits` gives, `rows` positions at a time, (at most rows, vocabulary): for texts of any length."""
        rows = arguments.integer("rows", rows, 1, 4096)
        return self._logits(self._checked("ids", ids), rows, rows)

    def embed(
        self,
        texts: str | Sequence[Prompt],
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """Embeddings of a text, or of several (text or token ids), by an embedding model: float32 (texts, dimensions).

        Each has length 1, and the same bits in whatever company. prompt: what texts are for, "query" or "document" of
        EmbeddingGemma: the words that the model was trained to see before them. dimensions: keep so many, the first.
        truncate: cut off what does not fit the context. Raises ValueError, TypeError, ContextOverflowError.
        """
        self._engine.check_open()
        return embed(self._runner, self._engine, self.tokenizer, texts, prompt, dimensions, truncate)

    # ---- life ----------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What the engine has done and does: answers running and waiting, tokens, memory of keys and values."""
        return self._engine.stats()

    def cancel(self) -> None:
        """End what was asked of the model so far, soon: generations in progress or not begun, and logits.

        From any thread.
        """
        self._engine.cancel_all()

    def close(self) -> None:
        """Free threads and memory. Idempotent, from any thread; what is in progress is cancelled first.

        In a forked child it returns at once.
        """
        self._release()
        self._engine.close()  # returns when another thread that closes is done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _generation(
        self, prompt: Prompt, options: AnswerOptions, priority: int = 0, backlog: int = BACKLOG
    ) -> Generation:
        """What `prompt` is to be continued as. Raises as the public methods do."""
        given = dict(options)
        max_tokens = arguments.integer("max_tokens", given.pop("max_tokens", 256), 1, 2**31)
        stop = stop_strings(given.pop("stop", ()))
        priority = arguments.integer("priority", given.pop("priority", priority), -(2**31), 2**31)
        deadline = arguments.moment("deadline", given.pop("deadline", None))
        ids = self._checked("prompt", self._prompt_ids(prompt) if isinstance(prompt, str) else prompt)
        sampler = Sampler(SamplingParams(**given))  # type: ignore[arg-type]
        return self._made(ids, max_tokens, stop, sampler, priority, deadline, backlog)

    def _made(
        self,
        ids: list[int],
        max_tokens: int,
        stop: tuple[str, ...],
        sampler: Sampler,
        priority: int,
        deadline: float,
        backlog: int,
    ) -> Generation:
        writer = Writer(self.tokenizer, ids, min(max_tokens, self.context - len(ids) + 1), stop)
        channel: Channel[PromptRead | Delta] = Channel(backlog, self._engine.wake)
        speculation = self._speculation(sampler)
        return Generation(ids, writer, sampler, channel, priority=priority, deadline=deadline, speculation=speculation)

    def _speculation(self, sampler: Sampler) -> Speculation | None:
        if not self._speculates:
            return None
        proposer = DraftModel(self._draft, sampler) if self._draft else PromptLookup()
        return Speculation(proposer, self._engine.step_times)

    def _choice(self, first: Generation, number: int) -> Generation:
        """Another continuation of the same prompt."""
        writer, prompt = first.writer, first.tokens
        sampler = Sampler(replace(first.sampler.params, seed=first.sampler.seed), number)
        return self._made(
            prompt, writer.max_tokens, tuple(writer.stop), sampler, first.priority, first.deadline, UNLIMITED
        )

    def _checked(self, name: str, ids: Sequence[int]) -> list[int]:
        """Token ids that a sequence may begin with. Raises as the public methods do."""
        self._check_continues()
        checked = arguments.token_ids(name, ids, self.config.vocab_size)
        if not checked:
            raise ValueError(f"{name}: there must be at least one token")
        if len(checked) > self.context:
            raise ContextOverflowError(
                f"{name}: {len(checked)} tokens do not fit the context of {self.context}; open with a larger one"
            )
        return checked

    def _check_continues(self) -> None:
        """Raise where the model is closed, and ValueError where it makes embeddings."""
        self._engine.check_open()
        self._runner.check_continues()

    def _prompt_ids(self, prompt: str) -> list[int]:
        try:
            return self.tokenize(prompt)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from error

    def _logits(self, ids: list[int], rows: int, chunk: int) -> Iterator[NDArray[np.float32]]:
        """Logits of `ids`, `rows` at a time, from when they are asked for; dropping the iterator ends the work."""
        channel: Channel[NDArray[np.float32]] = Channel(1, self._engine.wake)
        job = AllLogits(ids, rows, chunk, self._runner.new_logits, channel)
        try:
            self._engine.submit(job)
            yield from job.channel
        finally:
            self._engine.cancel(job)
