"""Text <-> token ids, over the vocabulary of a GGUF file. Knows no turns, no model and no cache.

Ids are llama.cpp's, with four exceptions, each wanted:

* </s> is the end tag of <s>, as Gemma was trained, unless the file calls it a control token or an end. llama.cpp takes
  it for another model's end of text: it does not find it in plain text, and ends an answer there.
* Plain text never turns into a control token. llama.cpp makes <start_of_image>, <|tool_call> and a few others out of
  plain text.
* U+2581, which sentencepiece writes for a space, is encoded by its three byte tokens, and so survives. llama.cpp takes
  it for a space, and decodes to another text than it encoded.
* There is one BOS token at most at the beginning.

A vocabulary may put a space in front of a text (no Gemma's does). It stands in front of what follows a control token
or an added one, too, as in llama.cpp and as those models were trained; `decode` takes all of these away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import numpy as np

from edge_gemma import arguments
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.byte_level import ByteLevel
from edge_gemma.text.pieces import SPACE
from edge_gemma.text.sentencepiece_model import TokenType
from edge_gemma.text.spm import SentencePiece
from edge_gemma.text.token_finder import TokenFinder
from edge_gemma.text.vocabulary import Kind, Vocabulary, read_vocabulary

MAX_TEXT_BYTES = 2**26  # sentencepiece takes up to 0.7 s and 50 MB for each 2**20

_SILENT = frozenset({TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED})


class Segmenter(Protocol):
    """What differs between the kinds of vocabularies."""

    def encode(self, text: str) -> list[int]:
        """The ids of text without control tokens."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token that is no control token."""


class Tokenizer:
    """Encodes and decodes. Safe to use from several threads at a time."""

    def __init__(self, vocabulary: Vocabulary, segmenter: Segmenter) -> None:
        """Use `from_gguf`."""
        self.vocab_size: int = len(vocabulary.tokens)
        self.bos_id: int = vocabulary.bos_id
        self.eos_id: int = vocabulary.eos_id
        self.eog_ids: frozenset[int] = vocabulary.eog_ids
        self.add_bos: bool = vocabulary.add_bos
        self.add_space_prefix: bool = vocabulary.add_space_prefix
        self._tokens = vocabulary.tokens
        self._types = vocabulary.types.tobytes()
        added = _added_ids(vocabulary)
        self._added = TokenFinder(added)
        self._special = TokenFinder(vocabulary.control_ids | added)
        self._segmenter = segmenter

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        """Check and load the vocabulary of an open file, whose mapping stays in use. Raises ModelFormatError."""
        vocabulary, parts = read_vocabulary(file)
        if vocabulary.kind is Kind.BYTE_LEVEL:
            return cls(vocabulary, ByteLevel(vocabulary, parts))
        return cls(vocabulary, SentencePiece(vocabulary, parts, str(file.path)))

    def encode(self, text: str, *, add_bos: bool | None = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`. Control tokens written out in it stay text, unless `parse_special`.

        `add_bos`: put BOS in front where it is not there already; None does what the file says. Raises ValueError for
        a text with a lone surrogate, or of more than MAX_TEXT_BYTES in UTF-8; TypeError naming the argument.
        """
        _check_text(text)
        finder = self._special if arguments.flag("parse_special", parse_special) else self._added
        wanted = self.add_bos if add_bos is None else arguments.flag("add_bos", add_bos)
        ids = self._encode_parts(finder.split(text))
        return [self.bos_id, *ids] if wanted and ids[:1] != [self.bos_id] else ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of `ids`. Control tokens are left out, unless `special`; bytes that are not UTF-8 become U+FFFD.

        `decode(encode(text, add_bos=False)) == text` for every text whose bytes all have tokens: Gemma's and all of
        sentencepiece's do. Raises TypeError or ValueError for what is no id of the vocabulary.
        """
        special = arguments.flag("special", special)
        parts, at_start = [], True
        for i in arguments.token_ids("ids", ids, self.vocab_size):
            apart = self.stands_apart(i)
            if special or not self.is_control(i):
                raw = self.token_bytes(i)
                parts.append(self.strip_prefix(raw) if at_start and not apart else raw)
            at_start = apart
        return b"".join(parts).decode("utf-8", "replace")

    def strip_prefix(self, raw: bytes) -> bytes:
        """`raw`, the bytes of a text's first token of text, without the space that `encode` put in front of it."""
        return raw[1:] if self.add_space_prefix and raw.startswith(b" ") else raw

    def stands_apart(self, token: int) -> bool:
        """Whether `encode` takes text in front of the token and behind it for two: at control and at added tokens."""
        return self.is_control(token) or self._types[token] == TokenType.USER_DEFINED

    def is_control(self, token: int) -> bool:
        """Whether the token stands for no text (BOS, turns, images, unused ones)."""
        return self._types[self._checked(token)] in _SILENT

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, not always whole characters; of a control token its name."""
        return self._tokens[token] if self.is_control(token) else self._segmenter.token_bytes(token)

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it, such as "\u2581the", "\u0120the" or "<0x0A>"."""
        return self._tokens[self._checked(token)].decode("utf-8")

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside 0..{self.vocab_size - 1}")
        return token

    def _encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        prefix = first = " " if self.add_space_prefix else ""
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                prefix = first
            elif part:
                ids += self._segmenter.encode(prefix + part)
                prefix = ""
        return ids


def _added_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Text -> id of the tokens that are looked for before all others, where the segmenter does not do that.

    Sentencepiece does, faster; but it knows of no space behind them.
    """
    if vocabulary.kind is not Kind.BYTE_LEVEL and not vocabulary.add_space_prefix:
        return {}
    ids = np.flatnonzero(vocabulary.types == TokenType.USER_DEFINED).tolist()
    names = ((vocabulary.tokens[i], i) for i in ids)
    byte_level = vocabulary.kind is Kind.BYTE_LEVEL
    return {(name if byte_level else name.replace(SPACE, b" ")).decode(): i for name, i in names}


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        char = ord(text[error.start])
        raise ValueError(f"the text has a lone surrogate, U+{char:04X} at character {error.start}") from error
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"the text has {size} bytes in UTF-8, the limit is {MAX_TEXT_BYTES}")
