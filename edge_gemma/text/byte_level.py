"""Plain text -> ids by byte-level BPE, and the bytes of its tokens. Knows no control tokens.

Bytes are spelled as characters that can be seen, as GPT-2 does: a byte that is a printable character of Latin-1 as
itself, the others as U+0100 and up. Text is cut into words, and inside a word the two neighbours with the earliest
merge become one token, the left ones first, until no merge is left.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from edge_gemma.text.merges import Merges
from edge_gemma.text.sentencepiece_model import TokenType
from edge_gemma.text.vocabulary import Parts, Vocabulary

MAX_CACHED = 2**16  # words
MAX_CACHED_LENGTH = 32  # characters
_SHIFT = 32  # of one half of a pair; ids and places of merges are smaller

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = tuple(sorted(set(range(256)) - set(_VISIBLE)))
_CHARS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_BYTES = {char: byte for byte, char in _CHARS.items()}


class ByteLevel:
    """A vocabulary of byte-level BPE. Safe to use from several threads at a time."""

    def __init__(self, vocabulary: Vocabulary, parts: Parts) -> None:
        """`parts` is not kept."""
        assert vocabulary.pre_tokenizer is not None and parts.merges is not None
        self._tokens = vocabulary.tokens
        self._types = vocabulary.types.tobytes()
        self._pre_tokenizer = vocabulary.pre_tokenizer
        self._merges = _by_pair(parts.merges, self._types)
        texts = {text: i for i, text in enumerate(self._tokens) if self._types[i] == TokenType.NORMAL}
        self._byte_ids = [texts.get(_CHARS[byte].encode()) for byte in range(256)]
        self._whole_words = texts if vocabulary.pre_tokenizer.ignore_merges else {}
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
        ids = (self._byte_ids[byte] for byte in word)
        return merged([i for i in ids if i is not None], self._merges)


def merged(ids: list[int], merges: dict[int, int]) -> list[int]:
    """`ids` after all merges; `merges` as `_by_pair` makes it.

    A heap has the merges that were possible when they were put there, each as its place in the order and the position
    of its left half; one whose neighbours have changed meanwhile is passed over. So n ids take n log n steps.
    """
    count = len(ids)
    ids, after, before = [*ids, -1], [*range(1, count + 1), count], [*range(-1, count)]
    heap: list[tuple[int, int]] = []

    def possible(at: int) -> int | None:
        return merges.get(ids[at] << _SHIFT | ids[after[at]]) if ids[after[at]] >= 0 else None

    for at in range(count - 1):
        if (found := possible(at)) is not None:
            heap.append((found, at))
    heapify(heap)
    while heap:
        merge, at = heappop(heap)
        if ids[at] < 0 or possible(at) != merge:
            continue
        right = after[at]
        ids[at], ids[right] = merge & (1 << _SHIFT) - 1, -1
        after[at] = after[right]
        before[after[at]] = at
        for left in (before[at], at):
            if left >= 0 and (found := possible(left)) is not None:
                heappush(heap, (found, left))
    return [i for i in ids if i >= 0]


def _by_pair(merges: Merges, types: bytes) -> dict[int, int]:
    """Left and right id as one number -> place in the order and id of what they make, as another.

    Of equal pairs the first counts. None makes what is no text: plain text never becomes a control token.
    """
    keys = merges.left << _SHIFT | merges.right
    values = range(keys.size)
    found: dict[int, int] = {}
    text = (TokenType.NORMAL, TokenType.USER_DEFINED)
    for key, place, made in zip(keys.tolist()[::-1], values[::-1], merges.merged.tolist()[::-1], strict=True):
        if types[made] in text:
            found[key] = place << _SHIFT | made
    return found
