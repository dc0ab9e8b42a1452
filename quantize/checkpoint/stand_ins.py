"""What lies in the place of a file that was not downloaded: a pointer to it, or a page that says no.

Knows how such things begin, and what to do about them.
"""

from __future__ import annotations

from pathlib import Path

from edge_gemma.errors import CheckpointError

BEGIN = 256  # bytes of a file that are looked at
LFS = b"version https://git-lfs.github.com/spec/v1"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
OLD_LFS = b"version https://hawser.github.com/spec/v1"
ANNEX = (b"/annex/objects/", b"\\annex\\objects\\")  # https://git-annex.branchable.com/internals/pointer_file
PAGES = (b"<!doctype html", b"<html", b"<?xml")
REFUSALS = (b"access to model ", b"invalid username or password", b"entry not found", b"repository not found")
"""What huggingface.co answers where a file is not to be had."""


def refuse_stand_in(path: Path) -> None:
    """Raise CheckpointError if `path` is a pointer, a web page or empty, OSError if it cannot be read."""
    with path.open("rb") as file:
        begin = file.read(BEGIN)
    if (reason := stand_in(begin)) is not None:
        raise CheckpointError(f"{path}: {reason}")


def stand_in(begin: bytes) -> str | None:
    """What a file that begins so is, and what to do; None for a file that may be what it should be."""
    if not begin:
        return "the file is empty (an interrupted download?); download it again"
    if begin.startswith((LFS, OLD_LFS)):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
    if begin.startswith(ANNEX):
        return "a git-annex pointer, not the file itself; run `git annex get` in its folder"
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(PAGES + REFUSALS):
        return "a web page or its refusal, saved in place of the file; download it again, logged in where that is asked"
    return None
