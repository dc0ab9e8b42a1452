"""The vocabulary of a GGUF file: its arrays and special ids, with every rule checked. Knows no tokenization.

The array rules are checked on all tokens at once; 262,144 Python objects would take longer than opening the model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile, Metadata, StringArray
from edge_gemma.text.sentencepiece_model import TokenType
from edge_gemma.text.special_tokens import read_special_tokens

TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"

MODELS = ("llama",)  # what converters call sentencepiece's BPE
Number = TypeVar("Number", bound=np.generic)

SPACE = "\u2581".encode()  # how sentencepiece writes a space inside its pieces


@dataclass(frozen=True)
class Pieces:
    """Tokens as sentencepiece spells them: their UTF-8 bytes one after the other, and the length of each in bytes.

    Megabytes that only sentencepiece's own copy is made of: to be dropped, while a `Vocabulary` is kept.
    """

    text: NDArray[np.uint8]  # (sum of lengths,)
    lengths: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n,)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(n,) where each piece begins in `text`."""
        return np.cumsum(self.lengths) - self.lengths


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary of n tokens.

    types: (n,) uint8, CONTROL for every token that plain text must never turn into, whatever the file calls it.
    byte_ids: the id of the token of each byte. control_ids: text -> id of all tokens of type CONTROL or UNKNOWN.
    """

    tokens: StringArray
    types: NDArray[np.uint8]  # (n,)
    byte_ids: tuple[int, ...]
    control_ids: dict[str, int]
    bos_id: int
    eos_id: int
    unk_id: int
    eog_ids: frozenset[int]
    add_bos: bool
    add_space_prefix: bool


def read_vocabulary(file: GgufFile) -> tuple[Vocabulary, Pieces]:
    """Read and check the tokenizer's part of the metadata. Raises ModelFormatError naming key, token and offset."""
    meta = file.metadata
    model = meta.string("tokenizer.ggml.model")
    if model not in MODELS:
        raise meta.error("tokenizer.ggml.model", f"{model!r} is not supported ({', '.join(MODELS)} is)")
    tokens = meta.strings(TOKENS)
    scores, types = _read_scores(meta, len(tokens)), _read_types(meta, len(tokens))
    pieces = _spell(tokens, types, scores)
    _check_texts(file, tokens, pieces)
    special = read_special_tokens(meta, tokens, types)
    types[list(special.control)] = TokenType.CONTROL
    control = np.flatnonzero((types == TokenType.CONTROL) | (types == TokenType.UNKNOWN)).tolist()
    control_ids = {tokens[i].decode(): i for i in control}
    vocabulary = Vocabulary(
        tokens,
        types,
        _byte_ids(meta, tokens, types),
        control_ids,
        bos_id=special.bos,
        eos_id=special.eos,
        unk_id=special.unknown,
        eog_ids=special.ends,
        add_bos=meta.boolean("tokenizer.ggml.add_bos_token", True),
        # No Gemma has one. Converters that leave the key out mean this, though llama.cpp then assumes the contrary.
        add_space_prefix=meta.boolean("tokenizer.ggml.add_space_prefix", False),
    )
    return vocabulary, pieces


def _first(meta: Metadata, key: str, values: NDArray[Number], count: int) -> NDArray[Number]:
    """One value for each token; others behind them belong to tokens that were cut off, and nobody reads them."""
    if len(values) < count:
        raise meta.error(key, f"has {len(values)} entries for {count} tokens")
    if len(values) > count:
        warnings.warn(
            f"{meta.path}: {key}: {len(values) - count} entries behind the last token are ignored", stacklevel=5
        )
    return values[:count]


def _read_scores(meta: Metadata, count: int) -> NDArray[np.float32]:
    scores = _first(meta, SCORES, meta.float_array(SCORES), count)
    finite = np.isfinite(scores)
    if not finite.all():
        i = int(finite.argmin())
        raise meta.error(SCORES, f"the score of token {i} is {scores[i]}")
    return scores


def _read_types(meta: Metadata, count: int) -> NDArray[np.uint8]:
    types = _first(meta, TYPES, meta.int_array(TYPES), count)
    known = (types >= min(TokenType)) & (types <= max(TokenType))
    if not known.all():
        i = int(known.argmin())
        raise meta.error(TYPES, f"the type of token {i} is {types[i]}, known are 1..6")
    return types.astype(np.uint8)


def _spell(tokens: StringArray, types: NDArray[np.uint8], scores: NDArray[np.float32]) -> Pieces:
    """The tokens' bytes without the length prefixes between them.

    Converters gave the user-defined tokens plain spaces for sentencepiece's; they get those back.
    """
    if not len(tokens):
        return Pieces(np.empty(0, np.uint8), tokens.lengths, scores)
    first = int(tokens.starts[0]) - 8
    region = np.frombuffer(tokens.raw[first : int(tokens.starts[-1]) + len(tokens[-1])], np.uint8)
    keep = np.ones(region.size, np.bool_)
    for i in range(1, 9):
        keep[tokens.starts - first - i] = False
    found = Pieces(region[keep], tokens.lengths, scores)
    spelled = {i: tokens[i].replace(b" ", SPACE) for i in np.flatnonzero(types == TokenType.USER_DEFINED).tolist()}
    return _replaced(found, {i: piece for i, piece in spelled.items() if len(piece) != found.lengths[i]})


def _replaced(pieces: Pieces, new: dict[int, bytes]) -> Pieces:
    """`pieces` with those at the keys of `new`, which rise, spelled anew."""
    starts, lengths = pieces.starts, pieces.lengths.copy()
    parts, done = [], 0
    for i, piece in new.items():
        parts += [pieces.text[done : starts[i]], np.frombuffer(piece, np.uint8)]
        done = int(starts[i] + lengths[i])
        lengths[i] = len(piece)
    return Pieces(np.concatenate([*parts, pieces.text[done:]]), lengths, pieces.scores)


def _check_texts(file: GgufFile, tokens: StringArray, pieces: Pieces) -> None:
    """Every token is UTF-8, not empty, without a zero byte (sentencepiece ends strings there), and no other's twin."""
    if not len(tokens):
        raise file.metadata.error(TOKENS, "there are no tokens")
    if pieces.lengths.min() == 0:
        raise _text_error(file, tokens, int(pieces.lengths.argmin()), "the token is empty")
    text = pieces.text
    if (text == 0).any():
        i = int(np.searchsorted(pieces.starts, (text == 0).argmax(), side="right")) - 1
        raise _text_error(file, tokens, i, "the token has a zero byte")
    bad = _first_not_utf8(pieces)
    if bad is not None:
        raise _text_error(file, tokens, bad, f"the token is not UTF-8: {tokens[bad]!r}")
    twins = _first_twins(pieces)
    if twins is not None:
        raise _text_error(file, tokens, twins[1], f"the token is the same as token {twins[0]}: {tokens[twins[1]]!r}")


def _text_error(file: GgufFile, tokens: StringArray, i: int, message: str) -> ModelFormatError:
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


def _first_twins(pieces: Pieces) -> tuple[int, int] | None:
    """Two ids of the same text. Equal hashes find them at once; only where there are some are texts compared."""
    values, counts = np.unique(_hashes(pieces), return_counts=True)
    if values.size == pieces.lengths.size:
        return None
    suspects = np.flatnonzero(np.isin(_hashes(pieces), values[counts > 1]))
    seen: dict[bytes, int] = {}
    starts = pieces.starts
    for i in suspects.tolist():
        text = pieces.text[starts[i] : starts[i] + pieces.lengths[i]].tobytes()
        if seen.setdefault(text, i) != i:
            return seen[text], i
    return None


def _hashes(pieces: Pieces) -> NDArray[np.uint64]:
    """(n,) a 64-bit polynomial hash of each piece, taken byte by byte for all pieces that still have one."""
    order = np.argsort(-pieces.lengths, kind="stable")
    starts, lengths = pieces.starts[order], pieces.lengths[order]
    hashes = lengths.astype(np.uint64)
    for position in range(int(lengths[0])):
        left = int(np.searchsorted(-lengths, -position, side="left"))  # how many pieces are longer than `position`
        hashes[:left] *= np.uint64(0x9E3779B97F4A7C15)
        hashes[:left] += pieces.text[starts[:left] + position]
    result = np.empty_like(hashes)
    result[order] = hashes
    return result


def _byte_ids(meta: Metadata, tokens: StringArray, types: NDArray[np.uint8]) -> tuple[int, ...]:
    """The ids of <0x00> to <0xFF>, which must all be there once and be all of the type BYTE."""
    found = {tokens[i]: i for i in np.flatnonzero(types == TokenType.BYTE).tolist()}
    names = [b"<0x%02X>" % value for value in range(256)]
    for name in names:
        if name not in found:
            raise meta.error(TYPES, f"there is no token {name.decode()} of type BYTE")
    if len(found) > len(names):
        extra = next(i for name, i in found.items() if name not in names)
        raise meta.error(TYPES, f"token {extra} ({tokens[extra]!r}) has type BYTE but is no byte")
    return tuple(found[name] for name in names)
