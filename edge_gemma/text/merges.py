"""The merges of a vocabulary in the file's order: which two tokens become which. Knows no tokenizing.

An entry is "left right". Tokens are found by a 64-bit hash of their text. Texts that were made to have the same hash
are taken for each other, which gives a file no more power than other merges would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Metadata
from edge_gemma.text.pieces import Pieces, hashes_of, read_pieces

MERGES = "tokenizer.ggml.merges"

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Merges:
    """Merge m makes token `merged[m]` of `left[m]` and `right[m]`, before all merges behind it. (m,) each."""

    left: Ids
    right: Ids
    merged: Ids

    def first_made(self, count: int) -> Ids:
        """(count,) the first merge that makes each token, their number for a token that none makes."""
        first = np.full(count, self.merged.size)
        first[self.merged[::-1]] = np.arange(self.merged.size)[::-1]
        return first


def read_merges(meta: Metadata, pieces: Pieces) -> Merges:
    """The merges of a vocabulary with these texts. Of a text that two tokens have, the first is meant.

    Raises ModelFormatError for an entry that is no pair of tokens which together are one.
    """
    entries = read_pieces(meta.strings(MERGES))
    most = int((pieces.lengths - 1).sum())  # a token of n bytes can be cut in n - 1 places
    if entries.lengths.size > most:
        raise meta.error(MERGES, f"{entries.lengths.size} entries, but these tokens can be made in {most} ways at most")
    starts, cuts = entries.starts, _cuts(meta, entries)
    joined = entries.text[entries.text != ord(" ")]
    find = _Finder(pieces)
    found = Merges(
        find(entries.text, starts, cuts - starts),
        find(entries.text, cuts + 1, starts + entries.lengths - cuts - 1),
        find(joined, starts - np.arange(starts.size), entries.lengths - 1),
    )
    _check_found(meta, entries, found)
    return found


def _cuts(meta: Metadata, entries: Pieces) -> Ids:
    """(m,) where in the text the space of each entry is."""
    starts, ends = entries.starts, np.cumsum(entries.lengths)
    spaces = np.flatnonzero(entries.text == ord(" "))
    counts = np.searchsorted(spaces, ends) - np.searchsorted(spaces, starts)
    no_pair = counts != 1
    if not no_pair.any():
        no_pair = (spaces == starts) | (spaces == ends - 1)
    if no_pair.any():
        i = int(no_pair.argmax())
        raise meta.error(MERGES, f"entry {i}, {_shown(entries, i)}, is not two tokens with a space between them")
    return spaces


class _Finder:
    """Ids by text."""

    def __init__(self, pieces: Pieces) -> None:
        hashes = hashes_of(pieces.text, pieces.starts, pieces.lengths)
        self._order = np.argsort(hashes, kind="stable")  # the first of twins comes first
        self._hashes = hashes[self._order]

    def __call__(self, text: NDArray[np.uint8], starts: Ids, lengths: Ids) -> Ids:
        """(m,) the id of each stretch of `text`, -1 for one that is no token."""
        wanted = hashes_of(text, starts, lengths)
        at = np.minimum(np.searchsorted(self._hashes, wanted), self._hashes.size - 1)
        return np.where(self._hashes[at] == wanted, self._order[at], -1)


def _check_found(meta: Metadata, entries: Pieces, found: Merges) -> None:
    for ids, what in ((found.left, "the first"), (found.right, "the second"), (found.merged, "what they make")):
        if (ids < 0).any():
            i = int((ids < 0).argmax())
            raise meta.error(MERGES, f"entry {i}, {_shown(entries, i)}: {what} is no token of the vocabulary")


def _shown(entries: Pieces, i: int) -> str:
    return repr(entries[i].decode("utf-8", "replace"))
