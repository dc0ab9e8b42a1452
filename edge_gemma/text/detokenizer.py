"""Token ids -> text, one id at a time, never a broken character. Knows no model and no stop rule."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edge_gemma.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The stream of `Tokenizer.decode`: all pushes and the flush together are the same text.

    With `after` they are what decoding these ids and the pushed ones together adds to the text of `after`. It differs
    where a vocabulary puts a space in front of each text: that one goes, and the first space of a text that is
    continued stays.

    Bytes that may still become a character are held back. Bytes that no longer can, and those left at the end, come
    out as U+FFFD, one for each part that Unicode calls a maximal subpart.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, after: Sequence[int] = ()) -> None:
        """`special`: show control tokens by their names. `after`: the ids of the text that is continued."""
        self._tokenizer = tokenizer
        self._special = special
        self._decoder = _Utf8Decoder("replace")
        self._at_start = not after or tokenizer.stands_apart(after[-1])

    def push(self, token: int) -> str:
        """The text that is complete with this token, often empty for a part of a character."""
        apart, at_start = self._tokenizer.stands_apart(token), self._at_start
        self._at_start = apart
        if not self._special and self._tokenizer.is_control(token):
            return ""
        raw = self._tokenizer.token_bytes(token)
        return self._decoder.decode(self._tokenizer.strip_prefix(raw) if at_start and not apart else raw)

    def flush(self) -> str:
        """What is left when the text ends: nothing, or U+FFFD for the beginning of a character. Starts a new text."""
        rest = self._decoder.decode(b"", True)
        self._at_start = True
        return rest
