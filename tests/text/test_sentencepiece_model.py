"""The bytes of a sentencepiece model."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece

from edge_gemma.text.sentencepiece_model import MAX_PIECE_BYTES, bpe_model
from tests.gguf_builder import NORMAL, UNKNOWN


def test_the_model_bytes_hold_every_piece() -> None:
    """Texts of one to two length bytes, through sentencepiece's own parser."""
    lengths = [1, 113, 114, 115, 127, 128, 129, 4096, 7999]  # sentencepiece takes no more
    pieces = [bytes([i]) + b"x" * (n - 1) for i, n in zip(b"abcdefghi", lengths, strict=True)] + [b"<unk>"]
    scores = np.linspace(-3, 1, len(pieces), dtype=np.float32)
    types = np.array([NORMAL] * len(lengths) + [UNKNOWN], dtype=np.uint8)
    text = np.frombuffer(b"".join(pieces), np.uint8)
    model = bpe_model(text, np.array([len(p) for p in pieces]), scores, types)
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.replace(b"\x98\x02\x01", b"\x98\x02\x00"))  # no byte pieces here
    assert [processor.id_to_piece(i).encode() for i in range(len(pieces))] == pieces
    assert [np.float32(processor.get_score(i)) for i in range(len(pieces))] == scores.tolist()
    assert processor.unk_id() == len(pieces) - 1


def test_a_piece_too_long_for_its_length_bytes() -> None:
    with pytest.raises(ValueError, match=f"the limit is {MAX_PIECE_BYTES}"):
        bpe_model(np.zeros(2**14, np.uint8), np.array([2**14]), np.zeros(1, np.float32), np.ones(1, np.uint8))
