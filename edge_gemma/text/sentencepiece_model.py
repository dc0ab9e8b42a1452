"""A sentencepiece model as bytes, written without protobuf. Knows the layout of ModelProto, no GGUF and no tokenizing.

Layout and field numbers: sentencepiece_model.proto. Each piece is one record of 13 bytes and its text,

    0A <record length: 2 bytes> 0A <text length: 2 bytes> <text> 15 <score: f32> 18 <type>

where a length always takes two bytes. Protobuf writes 5 as 05 but reads 85 00 as well, and so all records can be laid
out at once by NumPy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

BEFORE_TEXT = 6
AFTER_TEXT = 7
MAX_PIECE_BYTES = 2**14 - 1 - BEFORE_TEXT - AFTER_TEXT

_BPE = 2
# TrainerSpec: model_type = 3, byte_fallback = 35.
_TRAINER = bytes([3 << 3, _BPE, (35 << 3) & 0x7F | 0x80, 35 >> 4, 1])
# NormalizerSpec: name = 1, add_dummy_prefix = 3, remove_extra_whitespaces = 4, escape_whitespaces = 5.
_NORMALIZER = bytes([1 << 3 | 2, 8]) + b"identity" + bytes([3 << 3, 0, 4 << 3, 0, 5 << 3, 1])


class TokenType(IntEnum):
    """Sentencepiece's numbers, which are GGUF's too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def bpe_model(
    text: NDArray[np.uint8], lengths: NDArray[np.int64], scores: NDArray[np.float32], types: NDArray[np.uint8]
) -> bytes:
    """ModelProto of a BPE model with byte fallback that changes nothing in its input but the spelling of spaces.

    text: (sum of lengths,) the UTF-8 bytes of all pieces; lengths, scores, types: (n,), bytes per piece, and
    sentencepiece's own numbers for the types. Raises ValueError for a piece over MAX_PIECE_BYTES.
    """
    if lengths.size and lengths.max() > MAX_PIECE_BYTES:
        raise ValueError(f"a piece of {lengths.max()} bytes, the limit is {MAX_PIECE_BYTES}")
    return _records(text, lengths, scores, types) + _message(2, _TRAINER) + _message(3, _NORMALIZER)


def _message(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2, len(content)]) + content


def _records(
    text: NDArray[np.uint8], lengths: NDArray[np.int64], scores: NDArray[np.float32], types: NDArray[np.uint8]
) -> bytes:
    """The pieces (ModelProto.pieces = 1) with piece = 1, score = 2, type = 3."""
    around = BEFORE_TEXT + AFTER_TEXT
    out = np.empty(text.size + around * lengths.size, np.uint8)
    is_text = np.ones(out.size, np.bool_)
    starts = np.cumsum(lengths + around) - (lengths + around)

    def put(position: NDArray[np.int64], value: int | NDArray[np.int64] | NDArray[np.uint8]) -> None:
        out[position] = value
        is_text[position] = False

    def put_length(position: NDArray[np.int64], value: NDArray[np.int64]) -> None:
        put(position, value & 0x7F | 0x80)
        put(position + 1, value >> 7)

    put(starts, 1 << 3 | 2)
    put_length(starts + 1, lengths + around - 3)  # of what follows the record's own tag and length
    put(starts + 3, 1 << 3 | 2)
    put_length(starts + 4, lengths)
    ends = starts + BEFORE_TEXT + lengths
    put(ends, 2 << 3 | 5)
    for i, byte in enumerate(scores.astype("<f4").view(np.uint8).reshape(-1, 4).T):
        put(ends + 1 + i, byte)
    put(ends + 5, 3 << 3)
    put(ends + 6, types)
    out[is_text] = text
    return out.tobytes()
