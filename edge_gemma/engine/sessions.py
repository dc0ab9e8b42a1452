"""Sequences to disk and back: tokens, keys and values, to go on with in another process or on another CPU.

What is read is checked before anything is made of it: kinds, ranges, and the sizes that follow from them against the
file's. A sequence is there when the checksum at the end fits, and not before.

Pages are touched by the engine's thread alone, some at a time between two steps; what else is to be done with their
contents is done in the caller's, so that other sequences go on meanwhile. Knows no text and no kernel.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edge_gemma import arguments
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.pages import Table
from edge_gemma.engine.runner import Runner
from edge_gemma.engine.session_file import Source, Target, created
from edge_gemma.engine.session_header import Header, Model
from edge_gemma.errors import EdgeGemmaError, MemoryBudgetError
from edge_gemma.gguf.digest import model_digest
from edge_gemma.gguf.file import GgufFile
from edge_gemma.gguf.file_kind import expanded
from edge_gemma.graph.cache import PageTable, spans_of
from edge_gemma.graph.page_layout import ELEMENT_BYTES, Elements, elements, page_of, plain_of
from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import SPAN

BATCH_BYTES = 16 * 2**20
"""Bytes of pages that the engine's thread copies at a time: a few milliseconds."""
TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class Place:
    """The first `count` positions of span `span` of a layer."""

    layer: int
    span: int
    count: int
    state: AttentionState
    element_bytes: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of its keys and values, position by position."""
        return self.count, 2, self.state.kv_heads, self.state.head_dim

    @property
    def nbytes(self) -> int:
        """Of these, in the file."""
        return self.element_bytes * math.prod(self.shape)


class Sessions:
    """Saves and loads sequences of one model. Any thread may call."""

    def __init__(self, runner: Runner, engine: Engine) -> None:
        self._runner, self._engine, self.context = runner, engine, runner.context

    @cached_property
    def model(self) -> Model:
        """What sequences of this model have in common. The first time some milliseconds: see `gguf.digest`."""
        runner = self._runner
        return Model(
            weights=model_digest(runner.file),
            chat_template=_template_sha256(runner.file),
            kv_type=runner.kv_type,
            context=runner.context,
            vocab_size=runner.config.vocab_size,
            states=runner.pool.states,
        )

    def save(self, path: str | os.PathLike[str], tokens: Sequence[int], table: Table | None) -> None:
        """Write `tokens`, and the keys and values that `table` has of the first of them.

        Raises OutputError, FileExistsError, NotADirectoryError, ValueError, TypeError naming the path.
        """
        self._require_elements()
        target = expanded(arguments.path("path", path))
        fork = self._engine.call(table.fork) if table is not None else None  # which nobody else goes on with
        assert fork is None or isinstance(fork, PageTable)
        try:
            self._save(target, tokens, fork)
        finally:
            if fork is not None:
                self._engine.later(fork.release)

    def _require_elements(self) -> None:
        """Raise EdgeGemmaError for keys and values that the file has no form for."""
        if self._runner.kv_type not in ELEMENT_BYTES:
            raise EdgeGemmaError(
                f'kv_type="{self._runner.kv_type}": its sequences cannot be saved; "f16" and "f32" can'
            )

    def _save(self, path: Path, tokens: Sequence[int], table: PageTable | None) -> None:
        model = self.model
        positions, firsts = (table.length, table.first_positions) if table else (0, [0] * len(model.states))
        header = Header.of(model, len(tokens), positions, firsts)
        ids = np.array(tokens, "<u4")
        places = list(_places(header, model))
        size = ids.nbytes + sum(place.nbytes for place in places)
        with created(path, header, size, self._runner.file.path) as target:
            target.write(ids.tobytes())
            for batch in _batches(places):
                assert table is not None
                self._write(target, batch, table)

    def _write(self, target: Target, batch: list[Place], table: PageTable) -> None:
        pages = self._engine.call(lambda: [table.page(place.layer, place.span) for place in batch])
        for place, page in zip(batch, pages, strict=True):
            target.write(plain_of(page, place.state, place.count, place.element_bytes).data)

    def load(self, path: str | os.PathLike[str]) -> tuple[list[int], PageTable | None]:
        """The tokens of a saved sequence, and a table of as many as were computed, if any were.

        Raises SessionError, ContextOverflowError, MemoryBudgetError, OSError, ValueError, TypeError naming the path.
        """
        self._require_elements()
        with Source(expanded(arguments.path("path", path))) as source:
            header = source.header()
            header.check(self.model, source.path)
            places = list(_places(header, self.model))
            source.check_content(4 * header.tokens + sum(place.nbytes for place in places))
            tokens = self._read_tokens(source, header.tokens)
            if not header.positions:
                source.check_digest()
                return tokens, None
            return tokens, self._read_table(source, header, places, tokens)

    def _read_tokens(self, source: Source, count: int) -> list[int]:
        ids = np.frombuffer(source.take(4 * count), "<u4")
        if count and (largest := int(ids.max())) >= self.model.vocab_size:
            raise source.damaged(f"token id {largest} is outside 0..{self.model.vocab_size - 1}")
        found: list[int] = ids.tolist()
        return found

    def _read_table(self, source: Source, header: Header, places: list[Place], tokens: list[int]) -> PageTable:
        table = self._new_table(source.path, header)
        try:
            for batch in _batches(places):
                self._read(source, batch, table)
            source.check_digest()
            self._engine.keep(tokens, table)
        except BaseException:
            self._engine.later(table.release)
            raise
        return table

    def _new_table(self, path: str, header: Header) -> PageTable:
        pool, context = self._runner.pool, self._runner.context
        try:
            return self._engine.call_with_room(
                lambda: pool.restored_table(context, header.positions, header.first_positions)
            )
        except MemoryBudgetError as error:
            raise MemoryBudgetError(f"{path}: {error}") from error

    def _read(self, source: Source, batch: list[Place], table: PageTable) -> None:
        pages = [page_of(_plain(source, place), place.state) for place in batch]

        def fill() -> None:
            for place, page in zip(batch, pages, strict=True):
                table.fill(place.layer, place.span, page)

        self._engine.call(fill)


def _plain(source: Source, place: Place) -> Elements:
    return elements(source.take(place.nbytes), place.element_bytes).reshape(place.shape)


def _places(header: Header, model: Model) -> Iterator[Place]:
    """What a file with this header has of keys and values, in its order. The header was checked."""
    for layer, (state, first) in enumerate(zip(model.states, header.first_positions, strict=True)):
        for span in range(first // SPAN, spans_of(header.positions)):
            count = min(SPAN, header.positions - SPAN * span)
            yield Place(layer, span, count, state, ELEMENT_BYTES[header.kv_type])


def _batches(places: list[Place]) -> Iterator[list[Place]]:
    """Of BATCH_BYTES each, or little more."""
    batch, size = list[Place](), 0
    for place in places:
        batch.append(place)
        size += place.nbytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _template_sha256(file: GgufFile) -> str | None:
    value = file.metadata.get(TEMPLATE)
    if not isinstance(value, str | memoryview):
        return None
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return hashlib.sha256(raw).hexdigest()
