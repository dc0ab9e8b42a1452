"""What the commands print, and how they are interrupted. Knows no model.

Text goes to stdout, all else to stderr, which may be closed or no terminal: nothing here fails because of that.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

from edge_gemma.errors import OutputError
from edge_gemma.progress import Progress, TokenProgress

LOG_SECONDS = 10.0


def prepare() -> None:
    """Make both streams usable whatever they are, and print warnings as one line each."""
    _open_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  (for the process's life)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="edge-gemma: warning: %(message)s", level=logging.WARNING)
    warnings.showwarning = lambda message, *_rest, **_named: say(f"edge-gemma: warning: {message}")


def _open_descriptors() -> None:
    """Let 0, 1 and 2 exist: a model file opened under one of these numbers would get what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def write(text: str) -> None:
    """Print `text` to stdout now. Raises OutputError, or BrokenPipeError when the reader has gone."""
    with _output_errors():
        sys.stdout.write(text)
        sys.stdout.flush()


def flush() -> None:
    """Print what is still held back; raises as `write` does."""
    with _output_errors():
        sys.stdout.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if os.name == "nt" and error.errno == errno.EINVAL:  # what Windows calls a closed pipe
            raise BrokenPipeError from error
        raise OutputError(f"standard output: {error.strerror}") from error


def discard_output() -> None:
    """Print what stdout holds back if that is possible, else throw it away; Python would complain at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, sys.stdout.fileno())
            os.close(sink)


def say(text: str) -> None:
    """Print a line to stderr, if there is one."""
    _to_stderr(text.rstrip("\n") + "\n")


def one_line(text: str) -> str:
    """`text` without line breaks; control characters, which would steer the terminal, as escapes."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in flat)


def _to_stderr(text: str) -> None:
    with suppress(OSError, ValueError):  # closed, or its reader has gone: there is nowhere to complain
        sys.stderr.write(text)
        sys.stderr.flush()


class Status:
    """A line on stderr that changes and at last disappears, where stderr is a terminal that can go back in a line.

    Written without escape sequences: not every terminal knows them.
    """

    _used: ClassVar[int] = 0  # columns that are to be cleared, whoever has written there

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        """Show `text` in place of what was there, as much of it as fits."""
        if self.live:
            cut = text[: _columns() - 1]
            _to_stderr("\r" + cut.ljust(Status._used))
            Status._used = len(cut)

    def clear(self) -> None:
        """Take the line away."""
        if self.live and Status._used:
            _to_stderr("\r" + " " * Status._used + "\r")
            Status._used = 0


def _columns() -> int:
    """Of the terminal that stderr is; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def kernel_progress() -> Progress:
    """A `progress` for `Gemma`: one line while kernels are compiled, in a log a line that they are."""
    status = Status()

    def progress(done: int, total: int, name: str) -> None:
        from edge_gemma.kernels.isa import current

        note = f"compiling kernels for {current().name}, once"
        if done == total:
            status.clear()
        elif status.live:
            status.show(f"{note} ({done} of {total}, {name})")
        elif done == 0:
            say(note)

    return progress


def prompt_progress() -> TokenProgress:
    """An `on_progress` for `stream`: how much of a long prompt has been read, on a terminal."""
    status = Status()

    def progress(done: int, total: int) -> None:
        if done == total:
            status.clear()
        elif done:
            status.show(f"reading the prompt ({done} of {total} tokens)")

    return progress


def token_progress(note: str) -> TokenProgress:
    """A progress(done, total) that counts tokens; in a log a line every LOG_SECONDS."""
    status, shown = Status(), time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        text = f"{note} ({done} of {total} tokens)"
        if done == total:
            status.clear()
        elif status.live:
            status.show(text)
        elif time.monotonic() - shown >= LOG_SECONDS:
            shown = time.monotonic()
            say(text)

    return progress


class Interrupt:
    """While in use, the first Ctrl-C calls `stop`, and sets `seen`; the next one is a KeyboardInterrupt as usual."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.seen = False
        self._stop = stop
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # no other receives signals
            self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:  # else it is ignored, as under nohup
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, self._before)
        self._stop()
