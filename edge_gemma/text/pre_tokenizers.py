"""How byte-level BPE cuts a text into words, by the name in `tokenizer.ggml.pre`. Knows no vocabulary.

The patterns are those of the models' tokenizer.json, with the classes of characters that llama.cpp has
(src/llama-vocab.cpp, src/unicode-data.cpp): letters and numbers of Unicode 15.1, whatever Python knows of, white space
without U+001C to U+001F, and no letter but s in place of the s in 's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from edge_gemma.gguf.metadata import Metadata, shown
from edge_gemma.text import unicode_ranges


@dataclass(frozen=True)
class PreTokenizer:
    """patterns: each cuts what the one before it left, into what it matches and what is between.

    ignore_merges: a word that is a token is not merged. add_bos: where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def split(self, text: str) -> list[str]:
        """The words of `text`: together they are all of it."""
        words = [text] if text else []
        for pattern in self.patterns:
            found = _compiled(pattern).finditer
            words = [part for word in words for part in _parts(word, found(word))]
        return words


# {L}, {N}, {P} and {S} are the members of the classes letter, number, punctuation and white space.
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_OTHERS = " ?[^{S}{L}{N}]+"
_SPACES = "[{S}]+(?![^{S}])|[{S}]+"
_GPT_2 = f"{_CONTRACTIONS}| ?[{{L}}]+| ?[{{N}}]+|{_OTHERS}|{_SPACES}"
_LETTERS_OR_DIGITS = r"[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}"
_LLAMA_3 = rf"{_ANY_CASE}|{_LETTERS_OR_DIGITS}|{_OTHERS}[\r\n]*|[{{S}}]*[\r\n]+|{_SPACES}"
_LLAMA_BPE = PreTokenizer((_LLAMA_3,), ignore_merges=True, add_bos=True)

DEFAULT = "default"
PRE_TOKENIZERS = {
    DEFAULT: PreTokenizer(("[{P}$+<=>^~|]+", _GPT_2, "[{N}]+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT_2,)),
    "olmo": PreTokenizer((_GPT_2,)),
    "mpt": PreTokenizer((_GPT_2,)),
    "smollm": PreTokenizer(("[{N}]", _GPT_2)),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
}


def find_pre_tokenizer(meta: Metadata, key: str) -> PreTokenizer:
    """The one that `key` names; the default one where there is no key. Raises ModelFormatError for another name."""
    name = meta.string(key, DEFAULT)
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise meta.error(key, f"{shown(repr(name))} is no known way to cut words; known are {known}")
    return PRE_TOKENIZERS[name]


def _parts(word: str, matches: Iterator[re.Match[str]]) -> Iterator[str]:
    done = 0
    for match in matches:
        if match.start() > done:
            yield word[done : match.start()]
        yield match.group()
        done = match.end()
    if done < len(word):
        yield word[done:]


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.format_map(_classes()))


@cache
def _classes() -> dict[str, str]:
    """Name -> members, as they are written inside brackets."""
    tables = {"L": unicode_ranges.LETTERS, "N": unicode_ranges.NUMBERS, "P": unicode_ranges.PUNCTUATION}
    white = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    return {name: _members(table) for name, table in tables.items()} | {"S": white}


def _members(table: str) -> str:
    borders = list(accumulate(int(step, 36) for step in table.split()))
    return "".join(f"\\U{low:08x}-\\U{end - 1:08x}" for low, end in zip(borders[::2], borders[1::2], strict=True))
