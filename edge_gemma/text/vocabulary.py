"""The vocabulary of a GGUF file: its arrays and special ids, with every rule checked. Knows no tokenization.

There are three kinds, by `tokenizer.ggml.model` and `tokenizer.ggml.pre`:

* "llama": sentencepiece's BPE, with a score for each piece.
* "gemma4", which Ollama calls "llama" with the `pre` "gemma4": the same, but the scores say nothing. A piece's score
  follows from the first merge that makes it, and what no merge makes never comes of merging.
* "gpt2": byte-level BPE, with merges of pairs.

The array rules are checked on all tokens at once; 262,144 Python objects would take longer than opening the model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import GgufFile, Metadata, StringArray
from edge_gemma.text.merges import Merges, read_merges
from edge_gemma.text.pieces import SPACE, TOKENS, Pieces, check_texts, read_pieces, replaced, text_error, twins
from edge_gemma.text.pre_tokenizers import PreTokenizer, find_pre_tokenizer
from edge_gemma.text.sentencepiece_model import TokenType
from edge_gemma.text.special_tokens import read_special_tokens

MODEL = "tokenizer.ggml.model"
PRE = "tokenizer.ggml.pre"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"
ADD_BOS = "tokenizer.ggml.add_bos_token"
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"

Number = TypeVar("Number", bound=np.generic)


class Kind(Enum):
    """How text becomes tokens."""

    SCORED = "llama"
    MERGED = "gemma4"
    BYTE_LEVEL = "gpt2"


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary of n tokens.

    types: (n,) uint8, CONTROL for every token that plain text must never turn into, whatever the file calls it.
    byte_ids: the id of the token of each byte, none in a BYTE_LEVEL vocabulary.
    control_ids: text -> id of all tokens of type CONTROL or UNKNOWN. pre_tokenizer: of a BYTE_LEVEL vocabulary.
    """

    kind: Kind
    tokens: StringArray
    types: NDArray[np.uint8]  # (n,)
    byte_ids: tuple[int, ...]
    control_ids: dict[str, int]
    bos_id: int
    eos_id: int
    unk_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    add_space_prefix: bool
    pre_tokenizer: PreTokenizer | None


@dataclass(frozen=True)
class Parts:
    """What only a tokenizer's own copy of a vocabulary is made of: megabytes, to be dropped then.

    pieces: the tokens as sentencepiece spells them. scores: (n,), of a SCORED vocabulary. merges: of the others.
    twins: id -> the first id of the same text.
    """

    pieces: Pieces
    scores: NDArray[np.float32] | None
    merges: Merges | None
    twins: dict[int, int]


def read_vocabulary(file: GgufFile) -> tuple[Vocabulary, Parts]:
    """Read and check the tokenizer's part of the metadata. Raises ModelFormatError naming key, token and offset."""
    meta = file.metadata
    kind = _read_kind(meta)
    pre_tokenizer = find_pre_tokenizer(meta, PRE) if kind is Kind.BYTE_LEVEL else None
    tokens = meta.strings(TOKENS)
    scores = _read_scores(meta, len(tokens)) if kind is Kind.SCORED else None
    types = _read_types(meta, len(tokens))
    pieces = read_pieces(tokens) if kind is Kind.BYTE_LEVEL else _spelled(tokens, types)
    check_texts(file, tokens, pieces)
    parts = Parts(pieces, scores, _read_merges(meta, kind, pieces), _read_twins(file, kind, tokens, pieces))
    special = read_special_tokens(meta, tokens, types, needs_unknown=kind is not Kind.BYTE_LEVEL)
    types[list(special.control)] = TokenType.CONTROL
    vocabulary = Vocabulary(
        kind,
        tokens,
        types,
        () if kind is Kind.BYTE_LEVEL else _byte_ids(meta, tokens, types, parts.twins),
        _control_ids(tokens, types, parts.twins),
        bos_id=special.bos,
        eos_id=special.eos,
        unk_id=special.unknown,
        eog_ids=special.ends,
        add_bos=_adds_bos(meta, kind, pre_tokenizer),
        add_space_prefix=_adds_space(meta, kind),
        pre_tokenizer=pre_tokenizer,
    )
    return vocabulary, parts


def _read_kind(meta: Metadata) -> Kind:
    model = meta.string(MODEL)
    if model not in {kind.value for kind in Kind}:
        known = ", ".join(kind.value for kind in Kind)
        raise meta.error(MODEL, f"{model!r} is not supported ({known} are)")
    kind = Kind(model)
    if kind is Kind.SCORED and meta.get(PRE) == Kind.MERGED.value:
        return Kind.MERGED
    return kind


def _adds_bos(meta: Metadata, kind: Kind, pre_tokenizer: PreTokenizer | None) -> bool:
    """As in llama.cpp (src/llama-vocab.cpp). Early files of Gemma 4 say no, and without BOS no Gemma makes sense."""
    default = pre_tokenizer.add_bos if pre_tokenizer else True
    return meta.boolean(ADD_BOS, default) or kind is Kind.MERGED or _is_gemma(meta)


def _adds_space(meta: Metadata, kind: Kind) -> bool:
    """Whether there is a space in front of each text: of sentencepiece's models all but Gemma's have one.

    Converters of Gemma that leave the key out mean that there is none, though llama.cpp then assumes the contrary.
    """
    return meta.boolean(ADD_SPACE_PREFIX, not _is_gemma(meta)) and kind is Kind.SCORED


def _is_gemma(meta: Metadata) -> bool:
    return "gemma" in meta.string("general.architecture", "gemma")


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


def _spelled(tokens: StringArray, types: NDArray[np.uint8]) -> Pieces:
    """Converters gave the user-defined tokens plain spaces for sentencepiece's; they get those back."""
    found = read_pieces(tokens)
    spelled = {i: tokens[i].replace(b" ", SPACE) for i in np.flatnonzero(types == TokenType.USER_DEFINED).tolist()}
    return replaced(found, {i: piece for i, piece in spelled.items() if len(piece) != found.lengths[i]})


def _read_merges(meta: Metadata, kind: Kind, pieces: Pieces) -> Merges | None:
    return None if kind is Kind.SCORED else read_merges(meta, pieces)


def _read_twins(file: GgufFile, kind: Kind, tokens: StringArray, pieces: Pieces) -> dict[int, int]:
    """Tokens with the text of another. Google's own files of Gemma 4 have three, which text never becomes.

    Nobody's vocabulary of another kind is known to have any, nor which of them would be meant: that is a broken file.
    """
    found = twins(pieces)
    if found and kind is not Kind.MERGED:
        i, first = min(found.items())
        raise text_error(file, tokens, i, f"the token is the same as token {first}: {tokens[i]!r}")
    return found


def _control_ids(tokens: StringArray, types: NDArray[np.uint8], twins: dict[int, int]) -> dict[str, int]:
    control = np.flatnonzero((types == TokenType.CONTROL) | (types == TokenType.UNKNOWN)).tolist()
    return {tokens[i].decode(): i for i in control if i not in twins}


def _byte_ids(meta: Metadata, tokens: StringArray, types: NDArray[np.uint8], twins: dict[int, int]) -> tuple[int, ...]:
    """The ids of <0x00> to <0xFF>, which must all be there and be all of the type BYTE."""
    found = {tokens[i]: i for i in np.flatnonzero(types == TokenType.BYTE).tolist() if i not in twins}
    names = [b"<0x%02X>" % value for value in range(256)]
    for name in names:
        if name not in found:
            raise meta.error(TYPES, f"there is no token {name.decode()} of type BYTE")
    if len(found) > len(names):
        extra = next(i for name, i in found.items() if name not in names)
        raise meta.error(TYPES, f"token {extra} ({tokens[extra]!r}) has type BYTE but is no byte")
    return tuple(found[name] for name in names)
