"""The disk cache's folder for one set of kernel sources, compiler versions and CPU; nobody else may write to it.

Knows no kernel and no file of theirs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import time
from pathlib import Path

from platformdirs import user_cache_path

from edge_gemma.kernels.cache_key import KEY_DIGITS, cache_key

log = logging.getLogger(__name__)

KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
UNUSED_DAYS = 30
"""Folders of kernels that no process has opened for so long are removed when a new one is made."""


def cache_folder() -> Path | None:
    """The folder for this set of sources, compilers and CPU, made if need be; None if there is no safe place."""
    override = os.environ.get("EDGE_GEMMA_CACHE_DIR")
    try:
        base = Path(override) if override else user_cache_path("edge-gemma", appauthor=False)
        folder = base / "kernels" / cache_key()
        new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _only_ours(folder):
            log.warning("kernels are not cached: others may write to %s", folder)
            return None
        _note_use(folder, new)
    except (OSError, RuntimeError) as error:
        log.warning("kernels are not cached: %s", error)
        return None
    return folder


def _note_use(folder: Path, new: bool) -> None:
    """Date the folder. Failing costs nothing: it may be read-only, or another process may clean up meanwhile."""
    try:
        os.utime(folder)
        if new:
            _forget_unused(folder.parent)
    except OSError as error:
        log.debug("kernels of older versions stay: %s", error)


def _forget_unused(kernels: Path) -> None:
    """Remove what older versions left: each release, compiler or CPU has a folder of some MB of its own."""
    oldest = time.time() - 86400 * UNUSED_DAYS
    for folder in kernels.iterdir():
        if KEY.fullmatch(folder.name) and folder.lstat().st_mtime < oldest:
            log.info("removing kernels that were not used for %d days: %s", UNUSED_DAYS, folder)
            shutil.rmtree(folder, ignore_errors=True)


def _only_ours(folder: Path) -> bool:
    """No other user can put machine code there. Windows gives each user a folder of their own."""
    if os.name != "posix":
        return True
    for part in (folder, folder.parent):
        status = part.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
    return True
