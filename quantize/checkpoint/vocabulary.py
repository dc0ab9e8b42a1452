"""Tokens, scores and types of a checkpoint's tokenizer, as llama.cpp's converter lists them. Knows no GGUF key.

The source is `tokenizer.model` (sentencepiece), or `tokenizer.json` alone. A sentencepiece BPE model merges the pair
with the best score, and transformers writes its merges in just that order, so the rank of a merge gives the score back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder
from .strict_json import MAX_BYTES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0
MAX_TOKEN_BYTES = 4096
SPACE = "\u2581"  # how sentencepiece writes a space
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass
class Vocabulary:
    """Token i is `tokens[i]` (UTF-8 bytes, a space as U+2581) with `scores[i]` (float32) and `types[i]` (int32)."""

    tokens: list[bytes]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    notices: list[str]


def read_vocabulary(folder: CheckpointFolder, size: int | None) -> Vocabulary:
    """The vocabulary of the folder, padded to `size` tokens with `[PAD<i>]`; `size` None: as the tokenizer has it.

    Raises CheckpointError naming the file if there is no tokenizer, it is broken, or has more than `size` tokens.
    """
    name = "tokenizer.model"
    pieces = _read_sentencepiece(folder)
    if pieces is None:
        name = "tokenizer.json"
        pieces = _read_tokenizer_json(folder)
    where = f"{folder.path / name}"
    vocabulary = _sized(pieces, size, where)
    _overlay_added_tokens(vocabulary, folder)
    _check(vocabulary, where)
    return vocabulary


def _read_sentencepiece(folder: CheckpointFolder) -> Vocabulary | None:
    path = folder.file("tokenizer.model")
    if path is None:
        return None
    from sentencepiece import SentencePieceProcessor

    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
        ids = list(range(model.GetPieceSize()))
        tokens = [_utf8(piece, str(path)) for piece in model.IdToPiece(ids)]
    except (RuntimeError, ValueError) as error:  # a broken protobuf; pieces that are not UTF-8
        raise CheckpointError(f"{path}: not a sentencepiece model: {error}") from None
    types = np.full(len(ids), NORMAL, np.int32)
    # IsUnknown comes last because it has priority, as in llama.cpp's converter.
    kinds = ((BYTE, model.IsByte), (UNUSED, model.IsUnused), (CONTROL, model.IsControl), (UNKNOWN, model.IsUnknown))
    for kind, test in kinds:
        types[np.array(test(ids), dtype=bool)] = kind
    return Vocabulary(tokens, np.array(model.GetScore(ids), np.float32), types, [])


def _read_tokenizer_json(folder: CheckpointFolder) -> Vocabulary:
    document = folder.json("tokenizer.json")
    if document is None:
        raise CheckpointError(f"{folder.path}: neither tokenizer.model nor tokenizer.json")
    where = f"{folder.path / 'tokenizer.json'}: model"
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        raise CheckpointError(f"{where}: only BPE with byte_fallback, as Gemma has, is converted")
    pieces = _pieces_by_id(model.get("vocab"), where)
    ranks = _ranks(model.get("merges"), where)
    # Pieces no merge makes (single characters) are never the result of one, so their score has no effect.
    last = len(ranks)
    scores = np.array([-ranks.get(piece, last) for piece in pieces], np.float32)
    types = np.full(len(pieces), NORMAL, np.int32)
    names = set(BYTE_TOKENS)
    is_byte = np.array([piece in names for piece in pieces], dtype=bool)
    types[is_byte], scores[is_byte] = BYTE, 0.0
    if (unknown := model.get("unk_token")) in pieces[:16]:
        types[pieces.index(unknown)] = UNKNOWN
    return Vocabulary([_utf8(piece, where) for piece in pieces], scores, types, [])


def _pieces_by_id(vocab: Any, where: str) -> list[str]:
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{where}: vocab must be an object of piece: id")
    pieces: list[str | None] = [None] * len(vocab)
    for piece, number in vocab.items():
        if type(number) is not int or not 0 <= number < len(vocab) or pieces[number] is not None:
            ids = f"0..{len(vocab) - 1}"
            raise CheckpointError(f"{where}: vocab[{piece!r}] is {number!r}; ids must be {ids}, each once")
        pieces[number] = piece
    return [piece for piece in pieces if piece is not None]


def _ranks(merges: Any, where: str) -> dict[str, int]:
    """Merged piece -> its place in the order of first merges. Merges are "a b" or ["a", "b"]."""
    if not isinstance(merges, list):
        raise CheckpointError(f"{where}: merges must be a list")
    ranks: dict[str, int] = {}
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(f"{where}: merges[{index}] is {merge!r}, not a pair of pieces")
        ranks.setdefault(pair[0] + pair[1], len(ranks))
    return ranks


def _sized(pieces: Vocabulary, size: int | None, where: str) -> Vocabulary:
    have = len(pieces.tokens)
    if size is None or size == have:
        return pieces
    if size < have:
        raise CheckpointError(f"{where}: {have} tokens, but config.json and the embedding have {size}")
    missing = size - have
    pieces.notices.append(f"the tokenizer has {have} tokens, the model {size}: {missing} unused ones added")
    return Vocabulary(
        pieces.tokens + [f"[PAD{i}]".encode() for i in range(have, size)],
        np.append(pieces.scores, np.full(missing, PAD_SCORE, np.float32)),
        np.append(pieces.types, np.full(missing, UNUSED, np.int32)),
        pieces.notices,
    )


def _overlay_added_tokens(vocabulary: Vocabulary, folder: CheckpointFolder) -> None:
    """Give added tokens their text, their type and llama.cpp's score; ids beyond the vocabulary are left out."""
    for number, text, special in added_tokens(folder):
        if number >= len(vocabulary.tokens):
            vocabulary.notices.append(f"added token {text!r} left out: its id {number} is beyond the vocabulary")
            continue
        control = special or _looks_special(text)
        vocabulary.types[number] = CONTROL if control else USER_DEFINED
        vocabulary.scores[number] = ADDED_SCORE
        vocabulary.tokens[number] = _utf8(text if control else text.replace(SPACE, " "), f"added token {number}")


def added_tokens(folder: CheckpointFolder) -> list[tuple[int, str, bool]]:
    """(id, text, special) of the tokens added to the model's own, from whichever file of the folder lists them."""
    config = folder.json("tokenizer_config.json") or {}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        return [_added(key, entry, "tokenizer_config.json") for key, entry in decoder.items()]
    listed = (folder.json("tokenizer.json") or {}).get("added_tokens")
    if isinstance(listed, list) and listed:
        where = "tokenizer.json"
        return [_added(entry.get("id") if isinstance(entry, dict) else None, entry, where) for entry in listed]
    old = folder.json("added_tokens.json") or {}
    return [_added(number, {"content": text}, "added_tokens.json") for text, number in old.items()]


def _added(number: Any, entry: Any, where: str) -> tuple[int, str, bool]:
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 10:
        number = int(number)
    content = entry.get("content") if isinstance(entry, dict) else None
    if type(number) is not int or number < 0 or not isinstance(content, str):
        raise CheckpointError(f"{where}: added token {number!r}: {entry!r} has no id or no content")
    return number, content, bool(entry.get("special"))


def _looks_special(text: str) -> bool:
    """Control tokens which Gemma's files do not mark as special; the list is llama.cpp's."""
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or (
        text.endswith(">") and (text.startswith("<unused") or (text.startswith("<|") and text.endswith("|>")))
    )


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{where}: {text!r} has no UTF-8 form") from None


def _check(vocabulary: Vocabulary, where: str) -> None:
    """The rules every reader of the written file relies on."""
    tokens = vocabulary.tokens
    if not all(0 < len(token) <= MAX_TOKEN_BYTES for token in tokens):
        bad = next(i for i, token in enumerate(tokens) if not 0 < len(token) <= MAX_TOKEN_BYTES)
        raise CheckpointError(f"{where}: token {bad} has {len(tokens[bad])} bytes; 1..{MAX_TOKEN_BYTES} are allowed")
    if (zero := next((i for i, token in enumerate(tokens) if b"\0" in token), None)) is not None:
        raise CheckpointError(f"{where}: token {zero} has a zero byte")
    if len(set(tokens)) != len(tokens):
        token, count = Counter(tokens).most_common(1)[0]
        raise CheckpointError(f"{where}: token {token!r} appears {count} times")
    if not np.isfinite(vocabulary.scores).all():
        raise CheckpointError(f"{where}: token {int(np.argmin(np.isfinite(vocabulary.scores)))} has no finite score")
    found = {tokens[i] for i in np.flatnonzero(vocabulary.types == BYTE)}
    if found != {token.encode() for token in BYTE_TOKENS}:
        raise CheckpointError(f"{where}: has {len(found)} byte tokens; Gemma has all of <0x00>..<0xFF>")
