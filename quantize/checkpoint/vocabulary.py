"""Tokens, scores, types and merges of a checkpoint's tokenizer, as llama.cpp's converter lists them. Knows no GGUF key.

The source is `tokenizer.model` (sentencepiece), or `tokenizer.json` alone. A sentencepiece BPE model merges the pair
with the best score, and transformers writes its merges in just that order, so the rank of a merge gives the score back.
Gemma 4's and byte-level vocabularies are written with their merges instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder
from .strict_json import MAX_BYTES
from .tokenizer_json import SPACE, TokenizerJson, read_tokenizer_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SENTENCEPIECE, GEMMA_4, BYTE_LEVEL = "llama", "gemma4", "gpt2"
"""Kinds of vocabularies, by GGUF's names."""
WITH_MERGES = ("gemma4", "gemma4-assistant", "gemma-embedding2")
"""Architectures with Gemma 4's vocabulary."""
VISIBLE = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
"""Control tokens of Gemma 4 that programs which parse answers want to see: llama.cpp's converter types them so."""
ADDED_SCORE = -1000.0
PAD_SCORE = -10000.0
MAX_TOKEN_BYTES = 4096
MAX_GAP = 2**20  # ids that no token has
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


AddedToken = tuple[int, str, bool]
"""Id, text, and whether it is a control token."""


@dataclass
class Vocabulary:
    """Token i is `tokens[i]` (UTF-8 bytes, a space as U+2581) with `scores[i]` (float32) and `types[i]` (int32).

    model: the kind. pre: how a BYTE_LEVEL one cuts text, its tokens are spelled as GPT-2's. merges: "left right" of the
    kinds that have them. space_prefix: whether a space is put in front of texts. first: the text of the control token
    that the tokenizer puts there, where it says so. added: the tokens that were added to the model's own.
    """

    tokens: list[bytes]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    notices: list[str]
    model: str = SENTENCEPIECE
    pre: str | None = "default"
    merges: list[bytes] = field(default_factory=list)
    space_prefix: bool = False
    first: str | None = None
    added: list[AddedToken] = field(default_factory=list)


def read_vocabulary(folder: CheckpointFolder, size: int | None, architecture: str = "gemma") -> Vocabulary:
    """The vocabulary of the folder, padded to `size` tokens with `[PAD<i>]`; `size` None: as the tokenizer has it.

    Raises CheckpointError naming the file if there is no tokenizer, it is broken, of an unknown kind, or has more than
    `size` tokens.
    """
    name = "tokenizer.json"
    with_merges = architecture in WITH_MERGES and folder.file(name) is not None
    found = None if with_merges else _read_sentencepiece(folder)
    if found is not None:
        name = "tokenizer.model"
        found.added = _added_tokens(folder)
    else:
        found = _read_tokenizer_json(folder, architecture)
    where = f"{folder.path / name}"
    vocabulary = _sized(found, size, where)
    if vocabulary.model == GEMMA_4:
        _mark_special_tokens(vocabulary)
    else:
        _overlay_added_tokens(vocabulary)
    if "gemma" in architecture:
        vocabulary.space_prefix = False
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
    prefix = bool(model.EncodeAsPieces("a")) and model.EncodeAsPieces("a")[0].startswith(SPACE)
    return Vocabulary(tokens, np.array(model.GetScore(ids), np.float32), types, [], space_prefix=prefix)


def _read_tokenizer_json(folder: CheckpointFolder, architecture: str) -> Vocabulary:
    found = read_tokenizer_json(folder)
    if found is None:
        raise CheckpointError(f"{folder.path}: neither tokenizer.model nor tokenizer.json")
    if "gemma" in architecture and not found.byte_fallback:
        raise CheckpointError(f"{found.where}: only BPE with byte_fallback, as Gemma has, is converted")
    added = _added_tokens(folder, found.document)
    pieces = _pieces_in_order(found, added)
    if found.byte_fallback:
        vocabulary = _with_byte_fallback(found, pieces, merges=architecture in WITH_MERGES)
    else:
        vocabulary = _byte_level(found, pieces)
    return replace(vocabulary, added=added)


def _with_byte_fallback(found: TokenizerJson, pieces: list[str | None], *, merges: bool) -> Vocabulary:
    """Gemma 4's kind with merges, else with scores made of them."""
    pairs = found.merges()
    ranks = _ranks(pairs)
    # Pieces no merge makes (single characters) are never the result of one, so their score has no effect.
    scores = np.array([-ranks.get(piece, len(ranks)) for piece in pieces], np.float32)
    types = np.array([UNUSED if piece is None else NORMAL for piece in pieces], np.int32)
    names = set(BYTE_TOKENS)
    is_byte = np.array([piece in names for piece in pieces], dtype=bool)
    types[is_byte], scores[is_byte] = BYTE, 0.0
    if not merges and (unknown := found.model.get("unk_token")) in pieces[:16]:
        types[pieces.index(unknown)] = UNKNOWN
    tokens = _spelled(pieces, found.where)
    if not merges:
        return Vocabulary(tokens, scores, types, [], space_prefix=found.puts_space_in_front())
    scores[:] = ADDED_SCORE  # nobody reads them
    return Vocabulary(tokens, scores, types, [], GEMMA_4, None, _written(pairs, found.where))


def _byte_level(found: TokenizerJson, pieces: list[str | None]) -> Vocabulary:
    pre = found.pre_tokenizer()
    tokens, scores = _spelled(pieces, found.where), np.zeros(len(pieces), np.float32)
    types = np.array([UNUSED if piece is None else NORMAL for piece in pieces], np.int32)
    merges = _written(found.merges(), found.where)
    vocabulary = Vocabulary(tokens, scores, types, [], BYTE_LEVEL, pre, merges, first=found.first_special())
    if found.normalizer() is not None:
        text = f"the tokenizer's normalizer is left out, as by llama.cpp: {str(found.normalizer())[:80]}"
        vocabulary.notices.append(text)
    return vocabulary


def _pieces_in_order(found: TokenizerJson, added: list[AddedToken]) -> list[str | None]:
    """Text by id, of the model's tokens and of those added behind them; None for an id between that no token has."""
    pieces = found.pieces()
    if not found.byte_fallback:
        pieces |= {number: text for number, text, _ in added if number not in pieces}
    count = max(pieces) + 1
    if count > len(pieces) + (0 if found.byte_fallback else MAX_GAP):
        raise CheckpointError(f"{found.where}: vocab has {len(pieces)} ids up to {count - 1}; they must be each once")
    return [pieces.get(number) for number in range(count)]


def _spelled(pieces: Iterable[str | None], where: str) -> list[bytes]:
    return [f"[PAD{i}]".encode() if piece is None else _utf8(piece, where) for i, piece in enumerate(pieces)]


def _written(pairs: list[tuple[str, str]], where: str) -> list[bytes]:
    """With a space between the two. One inside of them is spelled as in byte-level BPE, as by llama.cpp's converter."""
    return [_utf8(" ".join(part.replace(" ", "\u0120") for part in pair), where) for pair in pairs]


def _ranks(pairs: list[tuple[str, str]]) -> dict[str | None, int]:
    """Merged piece -> its place in the order of first merges."""
    ranks: dict[str | None, int] = {}
    for left, right in pairs:
        ranks.setdefault(left + right, len(ranks))
    return ranks


def _sized(pieces: Vocabulary, size: int | None, where: str) -> Vocabulary:
    have = len(pieces.tokens)
    if size is None or size == have:
        return pieces
    if size < have:
        raise CheckpointError(f"{where}: {have} tokens, but config.json and the embedding have {size}")
    missing = size - have
    pieces.notices.append(f"the tokenizer has {have} tokens, the model {size}: {missing} unused ones added")
    return replace(
        pieces,
        tokens=pieces.tokens + [f"[PAD{i}]".encode() for i in range(have, size)],
        scores=np.append(pieces.scores, np.full(missing, PAD_SCORE, np.float32)),
        types=np.append(pieces.types, np.full(missing, UNUSED, np.int32)),
    )


def _mark_special_tokens(vocabulary: Vocabulary) -> None:
    """Types of Gemma 4's control tokens. Other added tokens are made by merges, as runs of newlines are, or unused."""
    for number, text, special in vocabulary.added:
        if number >= len(vocabulary.tokens):
            vocabulary.notices.append(f"added token {text!r} left out: its id {number} is beyond the vocabulary")
        elif special or text in VISIBLE:
            vocabulary.types[number] = USER_DEFINED if text in VISIBLE else CONTROL


def _overlay_added_tokens(vocabulary: Vocabulary) -> None:
    """Give added tokens their text, their type and llama.cpp's score; ids beyond the vocabulary are left out."""
    for number, text, special in vocabulary.added:
        if number >= len(vocabulary.tokens):
            vocabulary.notices.append(f"added token {text!r} left out: its id {number} is beyond the vocabulary")
            continue
        control = special or _looks_special(text)
        vocabulary.types[number] = CONTROL if control else USER_DEFINED
        vocabulary.scores[number] = ADDED_SCORE
        vocabulary.tokens[number] = _utf8(text if control else text.replace(SPACE, " "), f"added token {number}")


def _added_tokens(folder: CheckpointFolder, document: dict[str, Any] | None = None) -> list[AddedToken]:
    """Those of whichever file of the folder lists them. document: tokenizer.json, where it was read already."""
    config = folder.json("tokenizer_config.json") or {}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        return [_added(key, entry, "tokenizer_config.json") for key, entry in decoder.items()]
    listed = (document or folder.json("tokenizer.json") or {}).get("added_tokens")
    if isinstance(listed, list) and listed:
        where = "tokenizer.json"
        return [_added(entry.get("id") if isinstance(entry, dict) else None, entry, where) for entry in listed]
    old = folder.json("added_tokens.json") or {}
    return [_added(number, {"content": text}, "added_tokens.json") for text, number in old.items()]


def _added(number: Any, entry: Any, where: str) -> AddedToken:
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
    if vocabulary.model != BYTE_LEVEL:
        _check_bytes(vocabulary, where)
    if vocabulary.merges:
        _check_merges(vocabulary, where)


def _check_bytes(vocabulary: Vocabulary, where: str) -> None:
    found = {vocabulary.tokens[i] for i in np.flatnonzero(vocabulary.types == BYTE)}
    if found != {token.encode() for token in BYTE_TOKENS}:
        raise CheckpointError(f"{where}: has {len(found)} byte tokens; Gemma has all of <0x00>..<0xFF>")


def _check_merges(vocabulary: Vocabulary, where: str) -> None:
    """Each is of two tokens that together are one."""
    known = set(vocabulary.tokens)
    for index, merge in enumerate(vocabulary.merges):
        left, _, right = merge.partition(b" ")
        if not known.issuperset((left, right, left + right)):
            raise CheckpointError(f"{where}: model: merges[{index}], {merge.decode()!r}: not of tokens, or makes none")
