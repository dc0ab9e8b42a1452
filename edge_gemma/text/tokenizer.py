"""Text <-> token ids, by sentencepiece over the vocabulary of a GGUF file. Knows no turns, no model and no cache.

Ids are llama.cpp's, with five exceptions, each wanted:

* </s> is the end tag of <s>, as Gemma was trained, unless the file calls it a control token or an end. llama.cpp takes
  it for another model's end of text: it does not find it in plain text, and ends an answer there.
* Plain text never turns into a control token. llama.cpp makes <start_of_image> and a few others out of plain text.
* U+2581, which sentencepiece writes for a space, is encoded by its three byte tokens, and so survives. llama.cpp takes
  it for a space, and decodes to another text than it encoded.
* There is one BOS token at most at the beginning.
* Where a vocabulary puts a space in front of a text (no Gemma does), there is one space, as in sentencepiece, and in
  front of text. llama.cpp puts others behind each special token, and decodes to another text than it encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Self

import sentencepiece

from edge_gemma import arguments
from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.sentencepiece_model import TokenType, bpe_model
from edge_gemma.text.vocabulary import SPACE, TOKENS, Vocabulary, read_vocabulary

MAX_TEXT_BYTES = 2**26  # sentencepiece takes up to 0.7 s and 50 MB for each 2**20

_SPACE_CHAR = SPACE.decode()
_SILENT = frozenset({TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED})


class Tokenizer:
    """Encodes and decodes. Safe to use from several threads at a time."""

    def __init__(self, vocabulary: Vocabulary, processor: sentencepiece.SentencePieceProcessor) -> None:
        """Use `from_gguf`."""
        self.vocab_size: int = len(vocabulary.tokens)
        self.bos_id: int = vocabulary.bos_id
        self.eos_id: int = vocabulary.eos_id
        self.eog_ids: frozenset[int] = vocabulary.eog_ids
        self.add_bos: bool = vocabulary.add_bos
        self.add_space_prefix: bool = vocabulary.add_space_prefix
        self._tokens = vocabulary.tokens
        self._types = vocabulary.types.tobytes()
        self._byte_values = {token: bytes([value]) for value, token in enumerate(vocabulary.byte_ids)}
        self._space_char_ids = [vocabulary.byte_ids[value] for value in SPACE]
        self._controls = _ControlFinder(vocabulary.control_ids)
        self._processor = processor

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        """Check and load the vocabulary of an open file, whose mapping stays in use. Raises ModelFormatError."""
        vocabulary, pieces = read_vocabulary(file)
        types = vocabulary.types.copy()
        types[types == TokenType.UNKNOWN] = TokenType.CONTROL
        types[vocabulary.unk_id] = (
            TokenType.UNKNOWN
        )  # sentencepiece wants one; files have another number, or another id
        model = bpe_model(pieces.text, pieces.lengths, pieces.scores, types)
        del pieces  # so that sentencepiece can use the memory
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ModelFormatError(f"sentencepiece refuses it: {error}", field=TOKENS, path=str(file.path)) from error
        return cls(vocabulary, processor)

    def encode(self, text: str, *, add_bos: bool | None = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`. Control tokens written out in it stay text, unless `parse_special`.

        `add_bos`: put BOS in front where it is not there already; None does what the file says. Raises ValueError for
        a text with a lone surrogate, or of more than MAX_TEXT_BYTES in UTF-8; TypeError naming the argument.
        """
        _check_text(text)
        parse_special = arguments.flag("parse_special", parse_special)
        wanted = self.add_bos if add_bos is None else arguments.flag("add_bos", add_bos)
        ids: list[int] = []
        prefix = " " if self.add_space_prefix else ""
        for part in self._controls.split(text) if parse_special else (text,):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode_plain(prefix + part)
                prefix = ""
        return [self.bos_id, *ids] if wanted and ids[:1] != [self.bos_id] else ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of `ids`. Control tokens are left out, unless `special`; bytes that are not UTF-8 become U+FFFD.

        `decode(encode(text, add_bos=False)) == text` for every text that can be encoded. Raises TypeError or
        ValueError for what is no id of the vocabulary.
        """
        special = arguments.flag("special", special)
        parts, at_start = [], True
        for i in arguments.token_ids("ids", ids, self.vocab_size):
            control = self.is_control(i)
            if control and not special:
                continue
            raw = self.token_bytes(i)
            parts.append(self.strip_prefix(raw) if at_start and not control else raw)
            at_start = at_start and control
        return b"".join(parts).decode("utf-8", "replace")

    def strip_prefix(self, raw: bytes) -> bytes:
        """`raw`, the bytes of a text's first token of text, without the space that `encode` put in front of it."""
        return raw[1:] if self.add_space_prefix and raw.startswith(b" ") else raw

    def is_control(self, token: int) -> bool:
        """Whether the token stands for no text (BOS, turns, images, unused ones)."""
        return self._types[self._checked(token)] in _SILENT

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, not always whole characters; of a control token its name."""
        value = self._byte_values.get(self._checked(token))
        if value is not None:
            return value
        raw = self._tokens[token]
        return raw if self.is_control(token) else raw.replace(SPACE, b" ")

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it, such as "\u2581the" or "<0x0A>"."""
        return self._tokens[self._checked(token)].decode("utf-8")

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside 0..{self.vocab_size - 1}")
        return token

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE_CHAR)):
            ids += self._space_char_ids if i else []
            ids += self._processor.encode(part) if part else []
        return ids


class _ControlFinder:
    """Finds control tokens written out in a text; of several at one place the longest."""

    PREFIX = 3

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids
        lengths: dict[str, set[int]] = {}
        for name in ids:
            lengths.setdefault(name[: self.PREFIX], set()).add(len(name))
        self._lengths = {prefix: sorted(found, reverse=True) for prefix, found in lengths.items()}
        longest_first = sorted(lengths, key=len, reverse=True)
        self._prefix = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[str | int]:
        """The text in order, as stretches without a control token and the ids between them."""
        done = at = 0
        while found := self._prefix.search(text, at):
            start = found.start()
            name = self._name_at(text, start, found.group())
            at = start + max(len(name), 1)
            if name:
                yield text[done:start]
                yield self._ids[name]
                done = at
        yield text[done:]

    def _name_at(self, text: str, start: int, prefix: str) -> str:
        names = (text[start : start + length] for length in self._lengths[prefix])
        return next((name for name in names if name in self._ids), "")


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
