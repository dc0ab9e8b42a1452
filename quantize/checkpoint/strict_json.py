"""Read a JSON file of a checkpoint under the rules of the container formats. Knows no meaning of any key."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from edge_gemma.errors import CheckpointError

MAX_BYTES = 64 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, of at most 64 MiB. Raises CheckpointError naming the file, OSError if unreadable."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes of JSON; at most {MAX_BYTES} are read")
    return parse_object(path.read_bytes(), str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Duplicate keys, NaN/Infinity, deep nesting and anything but an object are errors."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(f"{where}: JSON is nested too deeply") from None
    except ValueError as error:  # also bad UTF-8 and integers of thousands of digits
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return items


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
