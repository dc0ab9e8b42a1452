"""Threads that the system runs, and an error in words where there are none. Knows not what they do.

A host may have replaced Python's threads: with gevent or eventlet they are greenlets, which run only while the one that
made them waits in Python. What waits for them in compiled code, or for a queue of C, waits for ever.
"""

from __future__ import annotations

import ctypes
import threading
from _queue import SimpleQueue  # not `queue`'s, which may be replaced
from collections.abc import Callable
from queue import Empty

from edge_gemma.errors import ThreadError

PATIENCE = 20.0
"""Seconds for a thread to appear: far more than a busy machine takes."""

REPLACED = (
    "this process has replaced Python's threads, as gevent and eventlet do: open the model before they are replaced"
)

_ident: Callable[[], int] = ctypes.pythonapi.PyThread_get_thread_ident
_ident.restype = ctypes.c_ulong  # type: ignore[attr-defined]


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread that runs `target`. Raises ThreadError, and then `target` is not run."""
    here = _ident()
    appeared: SimpleQueue[int] = SimpleQueue()
    wanted = True

    def run() -> None:
        ident = _ident()
        appeared.put(ident)
        if wanted and ident != here:
            target()

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
        ident = appeared.get(timeout=PATIENCE)
    except RuntimeError as error:
        raise ThreadError(f"the system starts no more threads ({error}); end some, or use fewer") from error
    except Empty:
        wanted = False
        raise ThreadError(f"a thread has not appeared in {PATIENCE:.0f} seconds; {REPLACED}") from None
    if ident == here:
        raise ThreadError(REPLACED)
    return thread
