"""How much memory a model takes at a given context, computed before anything is allocated.

Knows shapes and sizes only. All sizes are bytes, in Python integers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edge_gemma.cores import available_memory, default_threads
from edge_gemma.engine.recording import Recording
from edge_gemma.errors import ContextOverflowError, MemoryBudgetError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.cache import cache_bytes, spans_of
from edge_gemma.kernels.layout import attention_scratch, expert_scratch, matmul_scratch, row_scratch
from edge_gemma.kernels.operations import Regime
from edge_gemma.models.architecture import Config
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights

KvType: TypeAlias = Literal["f16", "f32", "q8_0"]

DEFAULT_CONTEXT = 8192
DEFAULT_CHUNK = 256
PAGE = 4096
MOST_TEXTS = 16
"""Of a step of an encoder: each takes a page of every layer at least."""
BUFFER_LIMIT = 64 * 2**20
"""A smaller chunk is taken where the activations of DEFAULT_CHUNK rows would exceed this, with int8 or int4 weights."""
TOKEN_BYTES = 200
"""What the tokenizer takes for each token of its vocabulary, measured: 52 MB of Gemma 3's 262,144, 42 of 256,000."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each kind. `weights` are pages of the mapped file, which processes share; the rest is our own. Tables
    that are only looked up, rows of which become resident as their tokens occur, are not in it.

    kv_cache and buffers are exact, `tokenizer` an estimate. What Python takes with this package, and the machine code
    of the kernels, is not in it: 30 MB before a model is opened, and 10 then.
    """

    weights: int
    kv_cache: int
    buffers: int
    tokenizer: int

    @property
    def own(self) -> int:
        """All but the weights."""
        return self.kv_cache + self.buffers + self.tokenizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.own


def memory_plan(
    config: Config,
    weights: Weights,
    context: int,
    *,
    chunk: int = DEFAULT_CHUNK,
    kv_type: KvType = "f16",
    threads: int = 1,
    sequences: int = 1,
) -> MemoryPlan:
    """The plan for `sequences` of `context` positions, each at its largest, as its pages come while it grows; and for
    the logits of a row of each.

    Raises ContextOverflowError outside 1..the model's trained context.
    """
    if not 1 <= context <= config.context_length:
        raise ContextOverflowError(f"a context of {context} is outside 1..{config.context_length}, the model's limit")
    logits = 0 if config.embedding else sequences * 4 * config.vocab_size
    return MemoryPlan(
        weights=sum(tensor.nbytes for tensor in weights.tensors()) - looked_up_bytes(config, weights),
        kv_cache=sequences * cache_bytes(config.states, context, chunk, kv_type),
        buffers=buffer_bytes(config, weights, context, chunk, kv_type)
        + threads * scratch_bytes(config, chunk)
        + logits,
        tokenizer=TOKEN_BYTES * config.vocab_size,
    )


def plan_memory(
    path: str | os.PathLike[str],
    context: int | None = None,
    sequences: int = 1,
    *,
    chunk: int | None = None,
    kv_type: KvType = "f16",
    threads: int | None = None,
) -> MemoryPlan:
    """What the model at `path` takes with so many sequences of a whole context; arguments as for `Gemma`.

    Reads the file's header. Raises ModelFormatError, ContextOverflowError, OSError.
    """
    with GgufFile.open(path) as file:
        config = read_config(file)
        return memory_plan(
            config,
            Weights.bind(file, config),
            context or usual_context(config),
            chunk=chunk or default_chunk(config, context),
            kv_type=kv_type,
            threads=threads or default_threads(),
            sequences=sequences if config.embedding is None else sequences_of_texts(context or usual_context(config)),
        )


def buffer_bytes(config: Config, weights: Weights, context: int, chunk: int, kv_type: KvType) -> int:
    """What the operations of steps of up to `chunk` rows work in: known exactly, from recording without memory."""
    model = config, weights, context
    recordings = [
        Recording(regime, chunk, lambda _tensor: 0, kv_type, *model, allocate=False) for regime in Regime.up_to(chunk)
    ]
    return sum(recording.program.buffer_bytes() for recording in recordings)


def looked_up_bytes(config: Config, weights: Weights) -> int:
    """Of tables that no product is made with, of which a token reads a row."""
    tables = [weights.outside.get("per_layer_token_embd")]
    if weights.output is not weights.token_embd or config.embedding is not None:
        tables.append(weights.token_embd)
    return sum(table.nbytes for table in tables if table is not None)


def scratch_bytes(config: Config, chunk: int) -> int:
    """What each thread works in, by the operation that needs the most, in whole pages."""
    shapes = {(state.head_dim, config.n_heads // state.kv_heads) for state in config.states}
    attention = max(attention_scratch(head_dim, group) for head_dim, group in shapes)
    products = matmul_scratch(chunk) if config.experts is None else expert_scratch(chunk)
    need = max(products, attention, row_scratch(config.d_model))
    return -(-need // PAGE) * PAGE


def sequences_of_texts(context: int) -> int:
    """Of an encoder's step, whole contexts that have the pages of all its texts: each begins one of its own."""
    return 1 + -(-MOST_TEXTS // spans_of(context))


def usual_context(config: Config, most: int = DEFAULT_CONTEXT) -> int:
    """Positions of a sequence where the user does not say."""
    return min(config.context_length, most)


def default_chunk(config: Config, context: int | None = None) -> int:
    """Rows of a step where the user does not say: as many as fit BUFFER_LIMIT, at most DEFAULT_CHUNK.

    An encoder reads a text of the whole context in one step.
    """
    if config.embedding is not None:
        return context or usual_context(config)
    q_width = config.n_heads * max(state.head_dim for state in config.states)
    kv_width = max(state.kv_heads * state.head_dim for state in config.states)
    d_ff = max(layer.d_ff for layer in config.layers)
    floats = 3 * config.d_model + 2 * q_width + 2 * kv_width
    row_bytes = 4 * floats + 2 * (config.d_model + q_width + d_ff)  # 2 for a value that is also quantized
    if config.experts is not None:
        row_bytes += config.experts.used * (4 * config.d_model + 2 * config.experts.d_ff)
    chunk = DEFAULT_CHUNK
    while chunk > 32 and chunk * row_bytes > BUFFER_LIMIT:
        chunk //= 2
    return chunk


def require_budget(
    config: Config,
    weights: Weights,
    context: int,
    budget: int,
    *,
    chunk: int = DEFAULT_CHUNK,
    kv_type: KvType = "f16",
    threads: int = 1,
    sequences: int = 1,
) -> MemoryPlan:
    """The plan, if our own memory fits `budget` bytes.

    Raises MemoryBudgetError naming the largest context that does fit, before anything is allocated.
    """

    def plan(positions: int) -> MemoryPlan:
        sizes = {"chunk": chunk, "threads": threads, "sequences": sequences}
        return memory_plan(config, weights, positions, kv_type=kv_type, **sizes)

    made = plan(context)
    if made.own <= budget:
        return made
    fits, too_many = 0, context
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if plan(middle).own <= budget else (fits, middle)
    advice = f"a context of {fits} fits" if fits else "no context fits"
    raise MemoryBudgetError(f"a context of {context} takes {made.own} bytes, the budget is {budget}; {advice}")


def page_limit(context_bytes: int, slots: int, kept: int) -> int:
    """Bytes of keys and values that `slots` answers and `kept` prefixes may take.

    One whole context fits at least; all of them where that is half of the memory or less.
    """
    return max(context_bytes, min(slots * context_bytes + kept, available_memory() // 2))
