"""Every error this package raises on purpose. All derive from `EdgeGemmaError`; nothing else escapes for bad input."""

from __future__ import annotations

import errno
from typing import Any

_WINDOWS_NO_MEMORY = (8, 14, 1455)  # not enough memory, out of memory, the paging file is too small


class EdgeGemmaError(Exception):
    """Base of all errors of this package. They can be pickled and copied: a pool of processes hands them on so."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Not by a call with `args`, as of other exceptions: those are the text, and not what the class is made from.

        One that cannot be made again leaves the parent of a `multiprocessing.Pool` waiting for ever.
        """
        reduced = super().__reduce__()
        assert isinstance(reduced, tuple)
        kind, args, *state = reduced
        return _again, (kind, args), *state


def _again(kind: type[EdgeGemmaError], args: tuple[Any, ...]) -> EdgeGemmaError:
    """An error with these `args`; its fields follow."""
    base = OSError if issubclass(kind, OSError) else Exception  # MemoryError's own `__new__` takes no other class
    return base.__new__(kind, *args)


class Cancelled(EdgeGemmaError):  # noqa: N818  (an answer, not a fault)
    """The call was cancelled before it had a result."""

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)


class ModelFormatError(EdgeGemmaError, ValueError):
    """A model file breaks a rule of its format, or asks for something this package does not run.

    `field` names the metadata key, tensor or header field at fault, `offset` its byte position in the file
    (None where the fault is not at one place, such as a missing key).
    """

    def __init__(self, message: str, *, field: str, offset: int | None = None, path: str | None = None) -> None:
        self.field = field
        self.offset = offset
        self.path = path
        where = f"{field} at byte {offset}" if offset is not None else field
        super().__init__(f"{path + ': ' if path else ''}{where}: {message}")


class CheckpointError(EdgeGemmaError, ValueError):
    """A checkpoint folder (weights, config.json, tokenizer, adapter) cannot be converted; names file and tensor or key.

    The message may quote the file: it is kept to one line, of printable characters, and to a length one can read.
    """

    def __init__(self, message: str) -> None:
        if len(message) > 1000:
            message = f"{message[:600]} ... {message[-300:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class ModelChangedError(EdgeGemmaError, RuntimeError):
    """The model file was modified on disk while it was mapped."""


class MemoryBudgetError(EdgeGemmaError, MemoryError):
    """There is no memory for what was asked for. The message has the bytes, and the context that fits or what else
    takes less."""


class ContextOverflowError(EdgeGemmaError, ValueError):
    """More tokens than the context holds."""


class ForkError(EdgeGemmaError, RuntimeError):
    """The process was forked after the model was opened; threads do not survive a fork. Use spawn."""


class ThreadError(EdgeGemmaError, RuntimeError):
    """The system starts no more threads, or the host has replaced Python's by something that is none (gevent)."""


class NumericalError(EdgeGemmaError, ArithmeticError):
    """The model produced a value that is not finite."""


class OutputError(EdgeGemmaError, OSError):
    """An output file could not be written: disk full, quota, limit, medium gone. What was there before is untouched."""


class SessionError(EdgeGemmaError, ValueError):
    """A saved sequence cannot be gone on with: it is damaged, or of another model. The message has path and reason."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system refused memory, in whatever words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in _WINDOWS_NO_MEMORY
    return isinstance(error, MemoryError)
