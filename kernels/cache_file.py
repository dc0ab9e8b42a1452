"""A file of the disk cache: its content behind a header line, whole or not there. Knows not what it is.

It is believed if its digest is right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def write_object(path: Path, code: bytes) -> None:
    """Write header and object under a temporary name, and rename: readers see all of it or nothing."""
    header = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "bytes": len(code)}).encode() + b"\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header + code)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_object(path: Path) -> bytes | None:
    """The object in a cache file; None if there is no such file, or it is not whole."""
    try:
        header, _, code = path.read_bytes().partition(b"\n")
        expected = json.loads(header)["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("ignoring a damaged kernel file, %s: %s", path, error)
        return None
    if hashlib.sha256(code).hexdigest() != expected:
        log.warning("ignoring a damaged kernel file, %s: its digest is wrong", path)
        return None
    return code
