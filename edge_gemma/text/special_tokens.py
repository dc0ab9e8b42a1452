"""Which tokens of a vocabulary begin a text, end an answer, and are never made of plain text. Knows no tokenization.

An answer ends where llama.cpp ends it (src/llama-vocab.cpp): at the tokens that the metadata names, and at those which
read as the ends of turns of known chat formats, since files of tuned models often name only <eos>. Two things differ.
A token that is ordinary text never ends an answer, whatever names it. And </s>, which is the end tag of <s> in Gemma's
vocabulary, is an end only where the file says so.

An id that cannot be used is warned of and ignored, as llama.cpp does, but for those without which nothing works.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.metadata import Metadata, StringArray, shown
from edge_gemma.text.sentencepiece_model import TokenType

ROLES_OF_ENDS = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # beside eos
END_LIST = "tokenizer.ggml.eos_token_ids"  # Ollama's
MAX_LISTED = 64
FAULTS_SHOWN = 3

# fmt: off
END_TEXTS = frozenset((
    "<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
    "<|endoftext|>", "<|end_of_text|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<EOT>", "_<EOT>",
    "[EOT]", "[EOS]", "[e~[", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>",
))
# fmt: on
# Text -> tokens beside which it ends something else than the answer.
_NO_ENDS_BESIDE = {
    "<|end|>": ({"<|return|>", "<|call|>"}, {"<|call|>", "<|flush|>"}, {"<|calls|>", "<|flush|>"}),
    "</s>": ({"<|tool_response>"},),
}
# Control tokens to which some converters give the type of ordinary ones.
CONTROL_TEXTS = frozenset(("<start_of_turn>", "<end_of_turn>", "[multimodal]"))
CONTROL_LOOKING = re.compile(r"<.*>")
HTML_TAG = re.compile(
    r"</?(a|b|bbox|blockquote|body|br|caption|code|div|em|footer|h[1-6]|hr|html|i|iframe|img|li|ol|p|pre|s|span|strong"
    r"|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)
_ORDINARY = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids. `ends`: of all tokens that end an answer, `eos` among them.

    `control`: of those that plain text must never turn into, although the file gives them an ordinary type.
    """

    bos: int
    eos: int
    unknown: int | None
    ends: frozenset[int]
    control: frozenset[int]


def read_special_tokens(
    meta: Metadata, tokens: StringArray, types: NDArray[np.uint8], *, needs_unknown: bool = True
) -> SpecialTokens:
    """The special tokens of a checked vocabulary. types: (n,).

    Raises ModelFormatError without a usable bos, eos or, if it is needed, unknown token; warns of other ids that are
    ignored.
    """
    found = _Reader(meta, tokens, types)
    known = found.texts(END_TEXTS | CONTROL_TEXTS | {"<unk>"})
    bos, eos = found.required("bos"), found.required("eos")
    unknown = found.unknown(known.get("<unk>"), needed=needs_unknown)
    ends = frozenset({eos, *found.named_ends(), *_ends_by_text(known, types)})
    named = {i for text, i in known.items() if text in CONTROL_TEXTS}
    defined = {i for i in np.flatnonzero(types == TokenType.USER_DEFINED).tolist() if _is_control_text(tokens[i])}
    control = {bos, *([] if unknown is None else [unknown]), *found.optional("padding"), *ends, *named, *defined}
    return SpecialTokens(bos, eos, unknown, ends, frozenset(i for i in control if types[i] in _ORDINARY))


def _ends_by_text(known: dict[str, int], types: NDArray[np.uint8]) -> Iterator[int]:
    """Of tokens that the file calls ordinary only those in angle brackets: nobody's text has been split into these."""
    for text, i in known.items():
        another = any(others <= known.keys() for others in _NO_ENDS_BESIDE.get(text, ()))
        special = types[i] in (TokenType.CONTROL, TokenType.UNKNOWN)
        added = types[i] in (TokenType.USER_DEFINED, TokenType.UNUSED) and text != "</s>"
        tagged = types[i] == TokenType.NORMAL and _is_control_text(text.encode())
        if text in END_TEXTS and not another and (special or added or tagged):
            yield i


class _Reader:
    """Ids in the metadata of one file."""

    def __init__(self, meta: Metadata, tokens: StringArray, types: NDArray[np.uint8]) -> None:
        self.meta = meta
        self.tokens = tokens
        self.types = types

    def texts(self, wanted: Iterable[str]) -> dict[str, int]:
        """Text -> id, of those that are there. Most tokens are told apart by their length and first byte."""
        ids = {text.encode(): text for text in wanted}
        lengths = np.isin(self.tokens.lengths, [len(raw) for raw in ids])
        raw = np.frombuffer(self.tokens.raw, np.uint8)
        likely = np.flatnonzero(lengths)
        likely = likely[np.isin(raw[self.tokens.starts[likely]], [raw[0] for raw in ids])]
        return {ids[token]: i for i in likely.tolist() if (token := self.tokens[i]) in ids}

    def required(self, role: str) -> int:
        """The id of bos or eos. Raises ModelFormatError if it is missing, outside, or ordinary text."""
        key = _key(role)
        i = self.meta.u32(key, hi=len(self.tokens) - 1)
        if not self._may_be_special(i):
            raise self.meta.error(key, f"token {i} ({self._shown(i)}) is ordinary text")
        return i

    def optional(self, role: str) -> list[int]:
        """The id of another role; none without one, and, with a warning, if it cannot be used."""
        key = _key(role)
        return self._usable(key, [self.meta[key]]) if key in self.meta else []

    def unknown(self, default: int | None, *, needed: bool) -> int | None:
        """The id of the unknown token: sentencepiece wants one."""
        ids = self.optional("unknown") or ([] if default is None else [default])
        if needed and not ids:
            raise self.meta.error(_key("unknown"), "there is no usable one, and no token <unk>")
        return ids[0] if ids else None

    def named_ends(self) -> list[int]:
        """Ids of the ends beside eos that the metadata names."""
        ids = [i for role in ROLES_OF_ENDS for i in self.optional(role)]
        if END_LIST not in self.meta:
            return ids
        listed = self.meta[END_LIST]
        values = listed[:MAX_LISTED].tolist() if isinstance(listed, np.ndarray) else [listed]
        return ids + self._usable(END_LIST, values)

    def _usable(self, key: str, values: list[object]) -> list[int]:
        """Those of `values` that are ids of tokens which may be special; one warning if others are among them."""
        faults = [self._fault(value) for value in values]
        if any(faults):
            reason = "; ".join(list(filter(None, faults))[:FAULTS_SHOWN])
            warnings.warn(f"{self.meta.path}: {key} is ignored where it cannot be meant: {reason}", stacklevel=6)
        return [value for value, fault in zip(values, faults, strict=True) if isinstance(value, int) and not fault]

    def _fault(self, value: object) -> str:
        """Why `value` cannot be the id of a special token; "" if it can."""
        if not isinstance(value, int) or isinstance(value, bool):
            return "it is no token id"
        if not 0 <= value < len(self.tokens):
            return f"{value} is outside 0..{len(self.tokens) - 1}"
        return "" if self._may_be_special(value) else f"token {value} ({self._shown(value)}) is ordinary text"

    def _may_be_special(self, i: int) -> bool:
        """Whether somebody made the token for a purpose of its own, by its type or at least by its look."""
        if self.types[i] == TokenType.NORMAL:
            return bool(CONTROL_LOOKING.fullmatch(self.tokens[i].decode()))
        return bool(self.types[i] != TokenType.BYTE)

    def _shown(self, i: int) -> str:
        return shown(repr(self.tokens[i].decode()))


def _is_control_text(token: bytes) -> bool:
    text = token.decode()
    return bool(CONTROL_LOOKING.fullmatch(text)) and not HTML_TAG.fullmatch(text)


def _key(role: str) -> str:
    return f"tokenizer.ggml.{role}_token_id"
