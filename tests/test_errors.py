"""Errors go from process to process as they are: type, text and fields."""

from __future__ import annotations

import copy
import errno
import inspect
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from edge_gemma import errors
from edge_gemma.errors import CheckpointError, EdgeGemmaError, ModelFormatError, OutputError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgeGemmaError)]
MAKE: dict[type[EdgeGemmaError], list[Callable[[], EdgeGemmaError]]] = {
    ModelFormatError: [
        lambda: ModelFormatError("wrong", field="a.key"),
        lambda: ModelFormatError("wrong", field="a.key", offset=7, path="x.gguf"),
    ],
    CheckpointError: [lambda: CheckpointError("a" * 700 + "\n" + "b" * 700)],
    OutputError: [
        lambda: OutputError("no room"),
        lambda: OutputError(errno.ENOSPC, "No space left on device", "out.gguf"),
        lambda: OutputError(errno.EXDEV, "Invalid link", "a", None, "b"),
    ],
}
EXAMPLES = [
    make for kind in ALL for make in MAKE.get(kind, [lambda kind=kind: kind("some text"), lambda kind=kind: kind()])
]
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {i}": lambda error, i=i: pickle.loads(pickle.dumps(error, i))
        for i in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def described(error: BaseException) -> tuple[Any, ...]:
    system = [getattr(error, name, None) for name in ("errno", "strerror", "filename", "filename2")]
    return type(error), str(error), repr(error), error.args, vars(error), system


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", EXAMPLES)
def test_every_error_survives(make: Callable[[], EdgeGemmaError], way: Callable[[Any], Any]) -> None:
    error = make()
    error.add_note("noted by the application")
    assert described(way(error)) == described(error)


def test_all_kinds_are_tried() -> None:
    assert {type(make()) for make in EXAMPLES} == set(ALL) and len(ALL) >= 9


def refuse(_item: int) -> None:
    raise ModelFormatError("wrong", field="a.key", offset=7, path="x.gguf")


def test_a_pool_of_processes_hands_it_on() -> None:
    """A result that cannot be unpickled ends the pool's own thread, and whoever waits for it waits for ever."""
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(ModelFormatError) as caught:
        pool.map_async(refuse, [1]).get(timeout=60)
    assert (caught.value.field, caught.value.offset, caught.value.path) == ("a.key", 7, "x.gguf")
