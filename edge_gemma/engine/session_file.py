"""The file of a saved sequence, written and read from front to back. Knows no page, no model and no engine.

    | "EGSEQNCE" | format, bytes of the header: u32 each | header: JSON | token ids: u32 each |
    | of each layer, of each position that it has: | keys [head][dim] | values [head][dim] | | BLAKE2b of all that |

All little-endian. Nothing in it depends on the CPU.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from edge_gemma.atomic_file import AtomicFile, check_destination, claimed
from edge_gemma.engine.session_header import MAX_HEADER, READ_AGAIN, Header, damaged
from edge_gemma.errors import SessionError

MAGIC = b"EGSEQNCE"
FORMAT = 1
START = struct.Struct("<8sII")
DIGEST_BYTES = 32
# A FIFO would otherwise block until someone writes to it. Windows has neither flag, but would translate line ends.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Target:
    """A file that is being written."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes. Raises OutputError."""
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Nothing comes any more but the digest."""
        self._file.write(self._digest.digest())


@contextmanager
def created(path: Path, header: Header, content_bytes: int, model: Path) -> Iterator[Target]:
    """Write `content_bytes` behind a header to `path`, which is there complete at the end, or as it was before.

    Raises OutputError, and FileExistsError or NotADirectoryError where no session may be written there.
    """
    check_destination(path, force=True, sources=[model] if model.exists() else [])
    _refuse_others(path)
    raw = header.encode()
    assert len(raw) <= MAX_HEADER
    size = START.size + len(raw) + content_bytes + DIGEST_BYTES
    with claimed(path), AtomicFile(path, size, force=True) as file:
        target = Target(file)
        target.write(START.pack(MAGIC, FORMAT, len(raw)) + raw)
        yield target
        target.finish()


def _refuse_others(path: Path) -> None:
    """Only a session is replaced by a session, or an empty file, which others make to reserve a name."""
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(MAGIC)) not in (MAGIC, b""):
                raise FileExistsError(f"{path} exists and is no saved sequence; name another file, or remove it first")


class Source:
    """A file that is being read."""

    def __init__(self, path: Path) -> None:
        """Raises OSError; SessionError for what is no file of bytes."""
        self.path = str(path)
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        fd = os.open(path, _OPEN_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SessionError(f"{path}: not a regular file; name the file of a saved sequence")
            self._left = status.st_size
            self._file = os.fdopen(fd, "rb", buffering=0)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def header(self) -> Header:
        """What it begins with. Raises SessionError."""
        start = self._read(min(START.size, self._left))
        if not start.startswith(MAGIC):
            raise SessionError(f"{self.path}: no saved sequence; those are written by `TokenSequence.save`")
        if len(start) < START.size:
            raise self.damaged("it is cut off in its first bytes")
        _, version, size = START.unpack(start)
        if version != FORMAT:
            what = f"of format {version}, and this version of edge-gemma reads format {FORMAT}"
            raise SessionError(f"{self.path}: a saved sequence {what}; {READ_AGAIN}")
        if size > MAX_HEADER:
            raise self.damaged(f"a header of {size} bytes, at most {MAX_HEADER} are allowed")
        try:
            return Header.parse(bytes(self.take(size)))
        except SessionError:
            raise
        except ValueError as error:
            raise self.damaged(str(error)) from None

    def check_content(self, size: int) -> None:
        """Raise SessionError unless there are `size` bytes and the digest to come."""
        if (missing := size + DIGEST_BYTES - self._left) > 0:
            raise self.damaged(f"it is cut off, {missing} bytes are missing")
        if missing:
            raise self.damaged(f"{-missing} bytes follow its end")

    def take(self, size: int) -> bytearray:
        """The next bytes. Raises SessionError where there are not so many, OSError where they cannot be read."""
        if size > self._left:
            raise self.damaged(f"it is cut off, {size - self._left} bytes are missing")
        return self._read(size)

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            try:
                count = self._file.readinto(view[done:])
            except OSError as error:
                raise OSError(error.errno or errno.EIO, error.strerror, self.path) from error
            if not count:
                raise self.damaged("it became shorter while it was read")
            done += count
        self._left -= size
        self._digest.update(content)
        return content

    def check_digest(self) -> None:
        """Raise SessionError unless the digest, which comes next, is that of all before."""
        found = self._digest.digest()
        if self.take(DIGEST_BYTES) != found:
            raise self.damaged("its checksum does not fit its content")

    def damaged(self, fault: str) -> SessionError:
        """The error to raise for a fault."""
        return damaged(self.path, fault)
