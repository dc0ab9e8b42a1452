"""The cache folder of this user: where it is, made for this user alone whatever the umask, refused if others may write.

Knows not what is kept there. Machine code is, so the rules are those for programs: what root or this user owns and
nobody else may write to is believed. Windows gives each user a folder of their own, and modes mean nothing there.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from platformdirs import user_cache_path

from edge_gemma.errors import OutputError

log = logging.getLogger(__name__)

VARIABLE = "EDGE_GEMMA_CACHE_DIR"
ADVICE = f"set {VARIABLE} to a folder of your own"
WRITABLE_BY_OTHERS = 0o022


def private_folder(*names: str) -> Path:
    """The folder `names` inside the cache folder, absolute, made if need be.

    Raises OutputError, which names the folder at fault, if it cannot be made or others may write to it.
    """
    try:
        folder = _base()
        for name in names:
            folder = folder / name
            _make(folder)
            _check_ours(folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or 'the working directory'}: {error.strerror}; {ADVICE}") from error
    except RuntimeError as error:  # no home folder, or none of the user named by ~user
        raise OutputError(f"{error} {ADVICE}") from error
    return folder


def fault_of(status: os.stat_result) -> str | None:
    """Why a file or folder could have been written by another user than this one or root; None if not so."""
    if os.name != "posix":
        return None
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user, {status.st_uid}"
    if status.st_mode & WRITABLE_BY_OTHERS:
        return f"may be written to by others, its mode is {stat.S_IMODE(status.st_mode):04o}"
    return None


def _base() -> Path:
    """The folder that the user named, `~` expanded and a relative one in the working directory; or the platform's.

    The user's own may have any owner and group: containers get folders of other users, and each file is looked at
    (`fault_of`). The platform's carries our name, and what an earlier version made is mended.
    """
    named = os.environ.get(VARIABLE, "")
    base = Path(named) if named.strip() else user_cache_path("edge-gemma", appauthor=False)
    base = base.expanduser().absolute()
    _make(base)
    if not named.strip() and not base.is_symlink():
        _check_ours(base)
    mode = base.stat().st_mode
    if os.name == "posix" and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OutputError(f"everybody may replace what lies in {base}; {ADVICE}, which may be a new one in there")
    return base


def _make(folder: Path) -> None:
    """Make it and what is missing above it, for this user alone."""
    if folder.is_dir():
        return
    _make(folder.parent)
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # whatever the umask takes away
    except FileExistsError:  # by another process, meanwhile
        if not folder.is_dir():
            raise OutputError(f"{folder} is no folder; move it away, or {ADVICE}") from None


def _check_ours(folder: Path) -> None:
    """A folder that this package makes. Earlier versions gave it the umask's mode: that is mended."""
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link; make it a folder, or set {VARIABLE} to the place where all shall be")
    status = folder.stat()
    if fault_of(status) and os.name == "posix" and status.st_uid == os.geteuid():
        log.info("taking from others the right to write to %s", folder)
        folder.chmod(0o700)
        status = folder.stat()
    if fault := fault_of(status):
        raise OutputError(f"{folder} {fault}; {ADVICE}")
