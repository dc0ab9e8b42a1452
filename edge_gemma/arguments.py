"""Arguments as the API takes them: each check gives the plain value, or an error that names the argument. No model.

NumPy's numbers are as good as Python's. They are made plain here: a narrow one would overflow in later arithmetic.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

_SHOWN = 80
"""Characters of a wrong value in a message."""


def integer(name: str, value: object, low: int, high: int) -> int:
    """A whole number in low..high. Raises ValueError."""
    number = whole(value)
    if number is None or not low <= number <= high:
        raise ValueError(f"{name}: {shown(value)} is no integer in {low}..{high}")
    return number


def optional_integer(name: str, value: object, low: int, high: int) -> int | None:
    """The same, or None for the default."""
    return None if value is None else integer(name, value, low, high)


def whole(value: object) -> int | None:
    """An integer as a plain one; None for others, and for True and False, which are integers to Python."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def real(value: object) -> float | None:
    """A number as the nearest float; None for what is no number, or too large for one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def seconds(name: str, value: object) -> float:
    """A finite number above 0. Raises ValueError."""
    number = real(value)
    if number is None or not 0 < number < float("inf"):
        raise ValueError(f"{name}: {shown(value)} is no number of seconds above 0")
    return number


def moment(name: str, value: object) -> float:
    """The moment, of `time.monotonic`, in so many seconds; never for None. Raises ValueError."""
    return float("inf") if value is None else time.monotonic() + seconds(name, value)


def flag(name: str, value: object) -> bool:
    """True or False. Raises TypeError: "no" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: {shown(value)} is neither True nor False")
    return bool(value)


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError for what is none of them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: {shown(value)} is neither {' nor '.join(map(repr, choices))}")


def callback(name: str, value: object) -> None:
    """Raise TypeError for what is neither None nor a function."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: {shown(value)} cannot be called")


def path(name: str, value: object) -> str:
    """The name of a file. Raises TypeError, also for bytes, and ValueError for what no file can be called."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise TypeError(f"{name}: expected a str or os.PathLike, got {type(given).__name__}")
    if "\0" in given:
        raise ValueError(f"{name}: {shown(given)} has a null character, which no file's name can have")
    try:
        os.fsencode(given)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {shown(given)} cannot be the name of a file: {error.reason}") from error
    return given


def token_ids(name: str, ids: object, vocab_size: int) -> list[int]:
    """A list, tuple or array of ids. Raises TypeError, or ValueError naming the first that is none."""
    if isinstance(ids, str | bytes | bytearray | memoryview) or not isinstance(ids, Sequence | np.ndarray):
        raise TypeError(f"{name}: expected a list of token ids, got {type(ids).__name__}")
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise ValueError(f"{name}: expected a row of token ids, got an array of shape {ids.shape}")
    return [_token_id(f"{name}[{i}]", token, vocab_size) for i, token in enumerate(ids)]


def _token_id(name: str, value: object, vocab_size: int) -> int:
    token = whole(value)
    if token is None:
        raise ValueError(f"{name}: expected a token id, got {shown(value)}")
    if not 0 <= token < vocab_size:
        raise ValueError(f"{name}: token id {shown(token)} is outside 0..{vocab_size - 1}")
    return token


def shown(value: Any) -> str:
    """A wrong value in a message: not longer than one can read, and numbers that Python refuses to write, too."""
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # such a number inside
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
