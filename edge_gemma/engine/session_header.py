"""What a saved sequence says of itself, and whether a model can go on with it. Knows no file and no engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn, Self

from edge_gemma import __version__
from edge_gemma.arguments import shown
from edge_gemma.errors import ContextOverflowError, SessionError
from edge_gemma.graph.cache import first_visible_span
from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import SPAN

MAX_HEADER = 2**16
"""Bytes."""
READ_AGAIN = "have the text read again"


@dataclass(frozen=True)
class Model:
    """What a sequence must have in common with the model that goes on with it, and the model's limits."""

    weights: str
    """See `gguf.digest`."""
    chat_template: str | None
    """The SHA-256 of that in the model's file, if there is one."""
    kv_type: str
    context: int
    vocab_size: int
    states: Sequence[AttentionState]


@dataclass(frozen=True)
class Header:
    """Fields of the JSON object, all of which are there.

    package: version of edge-gemma. weights, chat_template, kv_type, context: of the model. tokens: how many; of the
    first `positions` there are keys and values, in each layer from one of `first_positions` on.
    """

    package: str
    weights: str
    chat_template: str | None
    kv_type: str
    context: int
    tokens: int
    positions: int
    first_positions: list[int]

    @classmethod
    def of(cls, model: Model, tokens: int, positions: int, first_positions: list[int]) -> Self:
        """For a sequence of this model."""
        same = (model.weights, model.chat_template, model.kv_type, model.context)
        return cls(__version__, *same, tokens, positions, first_positions)

    def encode(self) -> bytes:
        """As it is in the file."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises ValueError for what is no such object, of whatever depth or length of numbers."""
        try:
            found = json.loads(raw.decode("ascii"), object_pairs_hook=_object, parse_constant=_refuse)
        except RecursionError:
            raise ValueError("the header is nested too deeply") from None
        if not isinstance(found, dict) or found.keys() != {field.name for field in fields(cls)}:
            raise ValueError("the header has other fields than it should have")
        for name, value in found.items():
            if not _is_of_kind(name, value):
                raise ValueError(f"the header's {name} is {shown(value)}")
        return cls(**found)

    def check(self, model: Model, path: str) -> None:
        """Raise SessionError or ContextOverflowError where `model` cannot go on with it, and SessionError where its
        numbers do not fit each other."""
        if self.package != __version__:
            versions = f"written by edge-gemma {shown(self.package)}, this is {__version__}"
            raise SessionError(f"{path}: {versions}, which may compute other bits; {READ_AGAIN}")
        if self.weights != model.weights:
            raise SessionError(f"{path}: was saved with other weights; open that model, or {READ_AGAIN}")
        if self.chat_template != model.chat_template:
            text = "was saved with another chat template than the model's file has now"
            raise SessionError(f"{path}: {text}; open that file, or {READ_AGAIN}")
        if self.kv_type != model.kv_type:
            there = f"keys and values are {shown(self.kv_type)} in it, and {model.kv_type!r} here"
            raise SessionError(f"{path}: {there}; open the model with that kv_type, or {READ_AGAIN}")
        if self.tokens > model.context:
            limit = f"{self.tokens} tokens do not fit the context of {model.context}"
            raise ContextOverflowError(f"{path}: {limit}; open the model with a larger one")
        if fault := self._fault(model.states):
            raise damaged(path, fault)

    def _fault(self, states: Sequence[AttentionState]) -> str | None:
        if self.positions > self.tokens:
            return f"keys and values of {self.positions} positions, and {self.tokens} tokens"
        if len(self.first_positions) != len(states):
            return f"{len(self.first_positions)} layers, and the model has {len(states)}"
        for layer, (state, first) in enumerate(zip(states, self.first_positions, strict=True)):
            if first % SPAN or first > SPAN * first_visible_span(state, self.positions):
                return f"layer {layer} has positions from {first} on, of {self.positions}"
        return None


def damaged(path: str, fault: str) -> SessionError:
    """The error to raise for a file that is not as it was written."""
    return SessionError(f"{path}: the saved sequence is damaged: {fault}; {READ_AGAIN}")


def _is_of_kind(name: str, value: object) -> bool:
    if name == "first_positions":
        return isinstance(value, list) and all(map(_is_count, value))
    if name in ("context", "tokens", "positions"):
        return _is_count(value)
    return isinstance(value, str) or (name == "chat_template" and value is None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the header has a field twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the header has {constant} for a number")
