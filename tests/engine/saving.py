"""What the tests of saved sequences share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_gemma import Gemma
from edge_gemma.engine.session_file import DIGEST_BYTES, FORMAT, MAGIC, START
from edge_gemma.token_sequence import TokenSequence

CONTEXT = 800
LONG, SHORT = 600, 21

Kind = Literal["f16", "f32"]


def ids(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 256, count).tolist()
    return found


def bits(sequence: TokenSequence) -> NDArray[np.uint32]:
    return sequence.logits.view(np.uint32)


def same(one: TokenSequence, other: TokenSequence) -> bool:
    return one.token_ids == other.token_ids and np.array_equal(bits(one), bits(other))


def read(model: Gemma, count: int) -> TokenSequence:
    sequence = model.sequence()
    sequence.append(ids(count))
    return sequence


def content_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a file, and what follows it but for the digest."""
    raw = file.read_bytes()
    size = START.unpack_from(raw)[2]
    header: dict[str, Any] = json.loads(raw[START.size : START.size + size])
    return header, raw[START.size + size : -DIGEST_BYTES]


def write(file: Path, header: dict[str, Any] | bytes, content: bytes, *, version: int = FORMAT) -> None:
    """A file of just that, its digest right."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw = START.pack(MAGIC, version, len(encoded)) + encoded + content
    file.write_bytes(raw + hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest())
