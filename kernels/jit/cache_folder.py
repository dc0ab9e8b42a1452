"""The disk cache's folder for one set of kernel sources, compiler versions and CPU; nobody else may write to it.

Knows no kernel and no file of theirs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path

from edge_gemma.errors import OutputError
from edge_gemma.user_cache import private_folder

from .cache_key import KEY_DIGITS, cache_key

log = logging.getLogger(__name__)

KERNELS = "kernels"
KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
UNUSED_DAYS = 30
"""Folders of kernels that no process has opened for so long are removed when a new one is made."""


def cache_folder() -> Path | None:
    """The folder for this set of sources, compilers and CPU, made if need be; None if there is no safe place."""
    key = cache_key()
    if key is None:
        log.warning("kernels are not cached, each start compiles them: this installation does not tell their version")
        return None
    try:
        new = not (private_folder(KERNELS) / key).exists()
        folder = private_folder(KERNELS, key)
    except OutputError as error:
        log.warning("kernels are not cached, each start compiles them: %s", error)
        return None
    _note_use(folder, new)
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
