"""Token ids -> text, one id at a time, never a broken character. Knows no model and no stop rule."""

from __future__ import annotations

import codecs

from edge_gemma.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The stream of `Tokenizer.decode`: all pushes and the flush together are the same text.

    Bytes that may still become a character are held back. Bytes that no longer can, and those left at the end, come
    out as U+FFFD, one for each part that Unicode calls a maximal subpart.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        """`special`: show control tokens by their names."""
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = _Utf8Decoder("replace")
        self._at_start = True

    def push(self, token: int) -> str:
        """The text that is complete with this token, often empty for a part of a character."""
        if not self._special and self._tokenizer.is_control(token):
            return ""
        raw = self._tokenizer.token_bytes(token)
        if self._at_start:
            raw = self._tokenizer.strip_prefix(raw)
            self._at_start = False
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What is left when the text ends: nothing, or U+FFFD for the beginning of a character. Starts a new text."""
        rest = self._decoder.decode(b"", True)
        self._at_start = True
        return rest
