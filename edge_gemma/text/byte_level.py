"""Plain text -> ids by byte-level BPE, and the bytes of its tokens. Knows no control tokens.

Bytes are spelled as characters that can be seen, as GPT-2 does: a byte that is a printable character of Latin-1 as
itself, the others as U+0100 and up. Text is cut into words, and inside a word the two neighbours with the earliest
merge become one token, the left ones first, until no merge is left.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from edge_gemma.text.merges import Merges
from edge_gemma.text.pieces import Pieces
from edge_gemma.text.sentencepiece_model import TokenType
from edge_gemma.text.vocabulary import Parts, Vocabulary

MAX_CACHED = 2**16  # words
MAX_CACHED_LENGTH = 32  # characters
MAX_WORD = 2**16  # bytes; what is longer is cut there, so that its ids take no gigabytes
_SHIFT = 32  # of the upper one of two numbers in one: ids, places of merges and positions in a word are smaller
_ID, _PLACE = (1 << _SHIFT) - 1, -1 << _SHIFT

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = tuple(sorted(set(range(256)) - set(_VISIBLE)))
_CHARS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_CHAR_BYTES = 2  # of the longest of these, in UTF-8
_BYTES = {char: byte for byte, char in _CHARS.items()}


class ByteLevel:
    """A vocabulary of byte-level BPE. Safe to use from several threads at a time."""

    def __init__(self, vocabulary: Vocabulary, parts: Parts) -> None:
        """`parts` is not kept."""
        assert vocabulary.pre_tokenizer is not None and parts.merges is not None
        self._tokens = vocabulary.tokens
        self._types = vocabulary.types.tobytes()
        self._pre_tokenizer = vocabulary.pre_tokenizer
        self._merges = _by_pair(parts.merges, vocabulary.types)
        whole = vocabulary.pre_tokenizer.ignore_merges
        ordinary = vocabulary.types == TokenType.NORMAL
        texts = _ids_by_text(parts.pieces, ordinary & (whole | (parts.pieces.lengths <= _CHAR_BYTES)))
        self._byte_ids = [texts.get(_CHARS[byte].encode(), -1) for byte in range(256)]
        self._whole_words = texts if whole else {}
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Bytes that have no token (some vocabularies lack control characters) are left out."""
        ids: list[int] = []
        for word in self._pre_tokenizer.split(text):
            found = self._cache.get(word)
            ids += self._remembered(word) if found is None else found
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token of text. One that was added is spelled as it is."""
        text = self._tokens[token].decode()
        if self._types[token] == TokenType.USER_DEFINED or not all(map(_BYTES.__contains__, text)):
            return text.encode()
        return bytes(map(_BYTES.__getitem__, text))

    def _remembered(self, word: str) -> list[int]:
        ids = self._encode_word(word.encode())
        if len(word) <= MAX_CACHED_LENGTH:
            if len(self._cache) >= MAX_CACHED:
                self._cache = {}
            self._cache[word] = ids
        return ids

    def _encode_word(self, word: bytes) -> list[int]:
        if self._whole_words:
            whole = self._whole_words.get("".join(map(_CHARS.__getitem__, word)).encode())
            if whole is not None:
                return [whole]
        cut = (word[i : i + MAX_WORD] for i in range(0, len(word), MAX_WORD))
        return [i for part in cut for i in merged([self._byte_ids[byte] for byte in part], self._merges)]


def merged(ids: list[int], merges: dict[int, int]) -> list[int]:
    """`ids` after all merges; `merges` as `_by_pair` makes it. -1 stands for a byte without a token, which is left out.

    A heap has the merges that were possible when they were put there, each as its place in the order and the position
    of its left half, in one number. One whose neighbours have changed meanwhile is passed over. So n ids take n log n
    steps.
    """
    count = len(ids)
    ids, after, before = [*ids, -1], [*range(1, count + 1), count], [*range(-1, count)]

    def possible(at: int) -> int:
        return merges.get(ids[at] << _SHIFT | ids[after[at]], -1) if ids[after[at]] >= 0 else -1

    heap = [found & _PLACE | at for at in range(count) if (found := possible(at)) >= 0]
    heapify(heap)
    while heap:
        entry = heappop(heap)
        at = entry & _ID
        merge = possible(at)
        if ids[at] < 0 or merge & _PLACE != entry & _PLACE:
            continue
        right = after[at]
        ids[at], ids[right] = merge & _ID, -1
        after[at] = after[right]
        before[after[at]] = at
        for left in (before[at], at):
            if left >= 0 and (found := possible(left)) >= 0:
                heappush(heap, found & _PLACE | left)
    return [i for i in ids if i >= 0]


def _by_pair(merges: Merges, types: NDArray[np.uint8]) -> dict[int, int]:
    """Left and right id as one number -> place in the order and id of what they make, as another.

    Of equal pairs the first counts. None makes what is no text: plain text never becomes a control token.
    """
    keys = merges.left << _SHIFT | merges.right
    values = np.arange(keys.size) << _SHIFT | merges.merged
    text = np.isin(types[merges.merged], (TokenType.NORMAL, TokenType.USER_DEFINED))
    return dict(zip(keys[text].tolist()[::-1], values[text].tolist()[::-1], strict=True))


def _ids_by_text(pieces: Pieces, wanted: NDArray[np.bool_]) -> dict[bytes, int]:
    text, starts = pieces.text.tobytes(), pieces.starts
    ids = np.flatnonzero(wanted)
    spans = zip(ids.tolist(), starts[ids].tolist(), (starts + pieces.lengths)[ids].tolist(), strict=True)
    return {text[start:end]: i for i, start, end in spans}
