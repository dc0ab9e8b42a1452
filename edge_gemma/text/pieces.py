"""The texts of a vocabulary's tokens, one after the other in memory, checked and looked up all at once.

Knows no token's meaning and no tokenizing. 262,144 Python objects would take longer than opening the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile, StringArray

TOKENS = "tokenizer.ggml.tokens"
SPACE = "\u2581".encode()  # how sentencepiece writes a space inside its pieces

BATCH = 4096
_B = 0x9E3779B97F4A7C15

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Pieces:
    """Texts in UTF-8, and the length of each in bytes."""

    text: NDArray[np.uint8]  # (sum of lengths,)
    lengths: NDArray[np.int64]  # (n,)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(n,) where each piece begins in `text`."""
        return np.cumsum(self.lengths) - self.lengths

    def __getitem__(self, i: int) -> bytes:
        """The text of piece `i`; takes time for all that are before it."""
        end = int(self.lengths[: i + 1].sum())
        return self.text[end - int(self.lengths[i]) : end].tobytes()

    def characters(self) -> NDArray[np.int64]:
        """(n,) the characters of each piece; none may be empty."""
        return np.add.reduceat((self.text & 0xC0) != 0x80, self.starts, dtype=np.int64)


def read_pieces(strings: StringArray) -> Pieces:
    """The entries of an array of strings, without the length prefixes between them."""
    lengths = strings.lengths
    if not len(strings):
        return Pieces(np.empty(0, np.uint8), lengths)
    first = int(strings.starts[0]) - 8
    region = np.frombuffer(strings.raw[first : int(strings.starts[-1]) + int(lengths[-1])], np.uint8)
    keep = np.ones(region.size, np.bool_)
    for i in range(1, 9):
        keep[strings.starts - first - i] = False
    return Pieces(region[keep], lengths)


def replaced(pieces: Pieces, new: dict[int, bytes]) -> Pieces:
    """`pieces` with those at the keys of `new`, which rise, spelled anew."""
    starts, lengths = pieces.starts, pieces.lengths.copy()
    parts, done = [], 0
    for i, piece in new.items():
        parts += [pieces.text[done : starts[i]], np.frombuffer(piece, np.uint8)]
        done = int(starts[i] + lengths[i])
        lengths[i] = len(piece)
    return replace(pieces, text=np.concatenate([*parts, pieces.text[done:]]), lengths=lengths)


def check_texts(file: GgufFile, tokens: StringArray, pieces: Pieces) -> None:
    """Every token is UTF-8, not empty, and without a zero byte, where sentencepiece ends strings."""
    if not len(tokens):
        raise file.metadata.error(TOKENS, "there are no tokens")
    if pieces.lengths.min() == 0:
        raise text_error(file, tokens, int(pieces.lengths.argmin()), "the token is empty")
    text = pieces.text
    if (text == 0).any():
        i = int(np.searchsorted(pieces.starts, (text == 0).argmax(), side="right")) - 1
        raise text_error(file, tokens, i, "the token has a zero byte")
    bad = _first_not_utf8(pieces)
    if bad is not None:
        raise text_error(file, tokens, bad, f"the token is not UTF-8: {tokens[bad]!r}")


def text_error(file: GgufFile, tokens: StringArray, i: int, message: str) -> ModelFormatError:
    """The error to raise for token `i`."""
    return ModelFormatError(message, field=f"{TOKENS}[{i}]", offset=int(tokens.starts[i]), path=str(file.path))


def _first_not_utf8(pieces: Pieces) -> int | None:
    """The first token that is not UTF-8. All are, if together they are and none begins inside a character."""
    starts = pieces.starts
    inside = (pieces.text[starts] & 0xC0) == 0x80
    bad = int(inside.argmax()) if inside.any() else None
    try:
        pieces.text.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        cut = int(np.searchsorted(starts, error.start, side="right")) - 1
        return cut if bad is None else min(bad, cut)
    # A token that begins inside a character means that the one before it ended there.
    return None if bad is None else max(bad - 1, 0)


def twins(pieces: Pieces) -> dict[int, int]:
    """Id -> the first id of the same text, for every further one. Texts are compared only where hashes are equal."""
    hashes = hashes_of(pieces.text, pieces.starts, pieces.lengths)
    values, counts = np.unique(hashes, return_counts=True)
    if values.size == pieces.lengths.size:
        return {}
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    starts, seen, found = pieces.starts, dict[bytes, int](), dict[int, int]()
    for i in suspects.tolist():
        text = pieces.text[starts[i] : starts[i] + pieces.lengths[i]].tobytes()
        if seen.setdefault(text, i) != i:
            found[i] = seen[text]
    return found


def hashes_of(text: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Hashes:
    """(n,) a 64-bit hash of each stretch of `text`; `starts` rise.

    It is the polynomial b0 + b1 / B + b2 / B**2 ... of its bytes, modulo 2**64, of an odd B. Sums of all bytes up to
    each place give the sum of any stretch, times a power of B. Some at a time, as that takes 24 bytes for each byte.
    """
    ends = starts + lengths
    batches = [slice(i, min(i + BATCH, starts.size)) for i in range(0, starts.size, BATCH)]
    bounds = [(int(starts[b.start]), int(ends[b].max())) for b in batches]
    longest = max((end - low for low, end in bounds), default=0)
    powers, inverses = (_powers(base, longest + 1) for base in (_B, pow(_B, -1, 2**64)))
    hashes = lengths.astype(np.uint64)
    for batch, (low, end) in zip(batches, bounds, strict=True):
        sums = np.zeros(end - low + 1, np.uint64)
        np.cumsum(text[low:end] * inverses[: end - low], out=sums[1:])
        hashes[batch] += (sums[ends[batch] - low] - sums[starts[batch] - low]) * powers[starts[batch] - low]
    return hashes


def _powers(base: int, count: int) -> Hashes:
    """(count,) the powers of `base`, from the zeroth on."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, out=factors)
