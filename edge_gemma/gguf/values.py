"""Typed values of a key-value section to be written. Knows kinds, neither keys nor bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_gemma.errors import CheckpointError


@dataclass(frozen=True)
class Value:
    """A typed value; `kind` as GGUF names it ("UINT32", "ARRAY[STRING]", ...), arrays of numbers as NumPy arrays."""

    kind: str
    value: Any


Metadata = dict[str, Value]


def u32(value: int) -> Value:
    """An unsigned 32-bit integer."""
    return Value("UINT32", value)


def i32(value: int) -> Value:
    """A signed 32-bit integer."""
    return Value("INT32", value)


def f32(value: float) -> Value:
    """A number, stored as float32."""
    return Value("FLOAT32", value)


def boolean(value: bool) -> Value:
    """True or false."""
    return Value("BOOL", value)


def string(value: str) -> Value:
    """A text, stored as UTF-8. Raises CheckpointError for a lone surrogate, which JSON can spell."""
    try:
        return Value("STRING", value.encode())
    except UnicodeEncodeError:
        raise CheckpointError(f"{value[:80]!r} has no UTF-8 form") from None


def bools(values: Iterable[bool]) -> Value:
    """An array of booleans."""
    return Value("ARRAY[BOOL]", np.fromiter(values, np.bool_))


def strings(values: Sequence[bytes]) -> Value:
    """An array of texts in UTF-8."""
    return Value("ARRAY[STRING]", values)
