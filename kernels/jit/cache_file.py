"""A file of the disk cache: its content behind a header line, whole or not there. Knows not what it is.

It is believed if its digest is right, which covers the names of file and folder, too: what was renamed or moved is not
what it says. And if nobody else can have written it, whoever may have had a hand in the folders above.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from edge_gemma.user_cache import fault_of

log = logging.getLogger(__name__)


def write_object(path: Path, content: bytes) -> None:
    """Write header and content under a temporary name, and rename: readers see all of it or nothing."""
    header = json.dumps({"sha256": _digest(path, content), "bytes": len(content)}).encode() + b"\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header + content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_object(path: Path) -> bytes | None:
    """The content of a cache file; None if there is no such file, it is not whole, or others can have written it."""
    try:
        with path.open("rb") as file:
            fault = fault_of(os.fstat(file.fileno()))
            header, _, content = file.read().partition(b"\n")
        expected = json.loads(header)["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("ignoring a damaged kernel file, %s: %s", path, error)
        return None
    if fault or _digest(path, content) != expected:
        log.warning("ignoring a damaged kernel file, %s: %s", path, f"it {fault}" if fault else "its digest is wrong")
        return None
    return content


def _digest(path: Path, content: bytes) -> str:
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode("utf-8", "surrogateescape"))
    digest.update(content)
    return digest.hexdigest()
