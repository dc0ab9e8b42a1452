"""Plain text -> ids by sentencepiece, and the bytes of its tokens. Knows no control tokens and no space in front.

Sentencepiece merges the two neighbours whose joined text has the best score. Where a file gives merges instead of
scores, the score of a piece is how early the first merge comes that makes it. A piece that no merge makes is kept out
of the merger: with any score, however low, "<table" and ">" would still become one of Gemma 4's tags. Merges are of
pairs, but that comes to the same: Gemma 4's have every way to cut a piece in two, one behind the other.
"""

from __future__ import annotations

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from edge_gemma.errors import ModelFormatError
from edge_gemma.text.pieces import SPACE, TOKENS, Pieces, replaced
from edge_gemma.text.sentencepiece_model import TokenType, bpe_model
from edge_gemma.text.vocabulary import Parts, Vocabulary

_SPACE_CHAR = SPACE.decode()
NO_SCORE = -1000.0


class SentencePiece:
    """A vocabulary with byte fallback, as sentencepiece has it."""

    def __init__(self, vocabulary: Vocabulary, parts: Parts, path: str) -> None:
        """`parts` is not kept. `path` is for errors: raises ModelFormatError for what sentencepiece does not take."""
        self._tokens = vocabulary.tokens
        values = {token: bytes([value]) for value, token in enumerate(vocabulary.byte_ids)}
        same = {i: first for i, first in parts.twins.items() if vocabulary.types[i] == TokenType.BYTE}
        self._byte_values = values | {i: values[first] for i, first in same.items()}
        self._space_char_ids = [vocabulary.byte_ids[value] for value in SPACE]
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(_model(vocabulary, parts))
        except RuntimeError as error:
            raise ModelFormatError(f"sentencepiece refuses it: {error}", field=TOKENS, path=path) from error

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. U+2581 in it, which means a space inside of pieces, becomes its bytes and so survives."""
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE_CHAR)):
            ids += self._space_char_ids if i else []
            ids += self._processor.encode(part) if part else []
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token of text."""
        return self._byte_values.get(token) or self._tokens[token].replace(SPACE, b" ")


def _model(vocabulary: Vocabulary, parts: Parts) -> bytes:
    types = vocabulary.types.copy()
    types[types == TokenType.UNKNOWN] = TokenType.CONTROL
    if vocabulary.add_space_prefix:  # then they are found before the space is there
        types[types == TokenType.USER_DEFINED] = TokenType.CONTROL
    pieces, scores = parts.pieces, parts.scores
    if scores is None:
        pieces, scores = _without_twins(parts, types), _scores(parts)
        types[_never_made(parts, scores, types)] = TokenType.CONTROL
    types[vocabulary.unk_id] = TokenType.UNKNOWN  # sentencepiece wants one; files have another number, or another id
    return bpe_model(pieces.text, pieces.lengths, scores, types)


def _scores(parts: Parts) -> NDArray[np.float32]:
    """(n,) of the pieces that merges make 0, -1, -2 in their order, which float32 holds exactly; NO_SCORE of others."""
    assert parts.merges is not None
    count = parts.pieces.lengths.size
    first = parts.merges.first_made(count)
    made = np.flatnonzero(first < parts.merges.merged.size)
    scores = np.full(count, np.nan, np.float32)
    scores[made[np.argsort(first[made])]] = -np.arange(made.size)
    return scores


def _never_made(parts: Parts, scores: NDArray[np.float32], types: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(n,) the pieces of several characters which no merge makes; `scores` gets a number for these and for characters.

    User-defined pieces are found before anything is merged.
    """
    unmade = np.isnan(scores)
    scores[unmade] = NO_SCORE
    apart: NDArray[np.bool_] = unmade & (types == TokenType.NORMAL) & (parts.pieces.characters() > 1)
    return apart


def _without_twins(parts: Parts, types: NDArray[np.uint8]) -> Pieces:
    """Every piece with a text of its own, as sentencepiece wants. A twin is no part of text, and `types` says so."""
    types[list(parts.twins)] = TokenType.CONTROL
    return replaced(parts.pieces, {i: f"<twin {i} of {first}>".encode() for i, first in parts.twins.items()})
