"""Which tokens begin, end and pad a text or end an answer, whether they are added, and the chat template.

Knows the tokenizer files of a Hugging Face folder; knows no GGUF key. A template is carried over as text, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder
from .vocabulary import BYTE, BYTE_LEVEL, CONTROL, GEMMA_4, UNKNOWN, USER_DEFINED, Vocabulary

ROLES = ("bos", "eos", "unk", "pad")
GEMMA_IDS = {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}  # sentencepiece's own
MAX_TEMPLATE = 1 << 20
TURN_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("<|return|>", "<|call|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
"""Added tokens that end an answer whatever config.json says: files of tuned models often name only <eos>."""
TAG = re.compile(r"<.+>")  # tokens that were made for a purpose of their own
HTML_TAG = re.compile(
    r"</?(a|b|bbox|blockquote|body|br|caption|code|div|em|footer|h[1-6]|hr|html|i|iframe|img|li|ol|p|pre|s|span|strong"
    r"|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul)>"
)  # which are text in Gemma's vocabulary


@dataclass(frozen=True)
class SpecialTokens:
    """`ids` by role (bos, eos, unk, pad), `ends`, `add` for bos and eos, and the chat template if there is one.

    `ends`: ids of all tokens after which nothing more is generated, eos the first. `suppressed`: of those that are
    never generated.
    """

    ids: dict[str, int]
    ends: list[int]
    add: dict[str, bool]
    chat_template: str | None
    suppressed: list[int]


def read_special_tokens(
    folder: CheckpointFolder, vocabulary: Vocabulary, config: dict[str, Any], architecture: str = "gemma"
) -> SpecialTokens:
    """Roles from tokenizer_config.json (by text), else config.json (by id), else the ids of Gemma or sentencepiece.

    Raises CheckpointError if a role's token is outside the vocabulary or is ordinary text, and without one for the
    beginning and the end.
    """
    tokenizer = folder.json("tokenizer_config.json") or {}
    ids = _roles(tokenizer, config, vocabulary, architecture)
    if missing := [role for role in ("bos", "eos") if role not in ids]:
        raise CheckpointError(f"{folder.path}: tokenizer_config.json and config.json name no {missing[0]} token")
    if "pad" in ids and not _may_pad(ids["pad"], vocabulary):
        vocabulary.notices.append(f"padding token {ids['pad']} left out: it is ordinary text or beyond the vocabulary")
        del ids["pad"]  # nobody reads it
    for role, number in ids.items():
        if not 0 <= number < len(vocabulary.tokens):
            raise CheckpointError(f"{folder.path}: {role} token {number} is outside {len(vocabulary.tokens)} tokens")
        if vocabulary.types[number] not in (CONTROL, UNKNOWN):
            text = vocabulary.tokens[number].decode(errors="replace")
            raise CheckpointError(f"{folder.path}: {role} token {number} is {text!r}, which is no control token")
    add = {"bos": _adds_bos(tokenizer, vocabulary, ids["bos"]), "eos": _flag(tokenizer, "eos", False)}
    ends = list(dict.fromkeys([ids["eos"], *_other_ends(folder, vocabulary, config)]))
    kept = (UNKNOWN, USER_DEFINED) if vocabulary.model == GEMMA_4 else (UNKNOWN,)
    vocabulary.types[[number for number in ends if vocabulary.types[number] not in kept]] = CONTROL
    return SpecialTokens(ids, ends, add, _chat_template(folder, tokenizer), _suppressed(folder, vocabulary))


def _roles(
    tokenizer: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary, architecture: str
) -> dict[str, int]:
    """Role -> id, of those that are named or follow from the kind of vocabulary."""
    defaults = GEMMA_IDS if "gemma" in architecture else {} if vocabulary.model == BYTE_LEVEL else LLAMA_IDS
    named = {role: _token_id(role, tokenizer, config, vocabulary) for role in ROLES}
    return defaults | {role: number for role, number in named.items() if number is not None}


def _adds_bos(tokenizer: dict[str, Any], vocabulary: Vocabulary, bos: int) -> bool:
    """What the tokenizer says; without BOS Gemma 4 writes nonsense, though its own tokenizer adds none."""
    if vocabulary.model == GEMMA_4:
        return True
    if vocabulary.model == BYTE_LEVEL:
        first = vocabulary.first is not None and vocabulary.first.encode() == vocabulary.tokens[bos]
        return first or _flag(tokenizer, "bos", False)
    return _flag(tokenizer, "bos", True)


def _suppressed(folder: CheckpointFolder, vocabulary: Vocabulary) -> list[int]:
    """Ids in generation_config.json that are never to be generated, such as those of images."""
    listed = (folder.json("generation_config.json") or {}).get("suppress_tokens")
    size = len(vocabulary.tokens)
    return [i for i in listed if type(i) is int and 0 <= i < size] if isinstance(listed, list) else []


def _may_pad(number: int, vocabulary: Vocabulary) -> bool:
    return 0 <= number < len(vocabulary.tokens) and bool(vocabulary.types[number] in (CONTROL, UNKNOWN))


def _other_ends(folder: CheckpointFolder, vocabulary: Vocabulary, config: dict[str, Any]) -> Iterator[int]:
    """Ends that the configurations list, and added tokens that say by their text that they are ends."""
    for number in _listed_ends(folder, config):
        reason = _no_end(number, vocabulary)
        notice = f"answers will not end at token {str(number)[:40]}: {reason}"
        if not reason:
            yield number
        elif notice not in vocabulary.notices:
            vocabulary.notices.append(notice)
    for number, text, _ in vocabulary.added:
        if text in TURN_ENDS and number < len(vocabulary.tokens):
            yield number


def _listed_ends(folder: CheckpointFolder, config: dict[str, Any]) -> Iterator[Any]:
    for source in (config, config.get("text_config"), folder.json("generation_config.json")):
        listed = source.get("eos_token_id") if isinstance(source, dict) else None
        yield from (number for number in (listed if isinstance(listed, list) else [listed]) if number is not None)


def _no_end(number: Any, vocabulary: Vocabulary) -> str:
    """Why a token cannot end answers, empty if it can. Plain text never becomes a token that does."""
    if type(number) is not int or not 0 <= number < len(vocabulary.tokens):
        return "it is not in the vocabulary"
    text, kind = vocabulary.tokens[number].decode(), vocabulary.types[number]
    if kind in (CONTROL, UNKNOWN) or (kind != BYTE and TAG.fullmatch(text) and not HTML_TAG.fullmatch(text)):
        return ""
    return f"it is ordinary text, {text!r}; give it as a stop string"


def _token_id(role: str, tokenizer: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary) -> int | None:
    entry = tokenizer.get(f"{role}_token")
    text = entry.get("content") if isinstance(entry, dict) else entry
    if isinstance(text, str) and (token := text.encode(errors="replace")) in vocabulary.tokens:
        return vocabulary.tokens.index(token)
    sources = [config, config.get("text_config")]
    for source in sources:
        number = source.get(f"{role}_token_id") if isinstance(source, dict) else None
        if isinstance(number, list) and number:
            number = number[0]  # instruction-tuned models list every end-of-turn token; the first is <eos>
        if type(number) is int:
            return number
    return None


def _flag(tokenizer: dict[str, Any], role: str, default: bool) -> bool:
    value = tokenizer.get(f"add_{role}_token")
    return value if isinstance(value, bool) else default


def _chat_template(folder: CheckpointFolder, tokenizer: dict[str, Any]) -> str | None:
    template = tokenizer.get("chat_template")
    if isinstance(template, list):  # [{"name": "default", "template": ...}, ...]
        defaults = [e.get("template") for e in template if isinstance(e, dict) and e.get("name") == "default"]
        template = defaults[0] if defaults else None
    if template is None and (path := folder.file("chat_template.jinja")) is not None:
        if path.stat().st_size > MAX_TEMPLATE:
            raise CheckpointError(f"{path}: longer than {MAX_TEMPLATE} bytes")
        try:
            template = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8: {error}") from None
    if template is None:
        template = (folder.json("chat_template.json") or {}).get("chat_template")
    if template is not None and (not isinstance(template, str) or len(template) > MAX_TEMPLATE):
        raise CheckpointError(f"{folder.path}: chat_template must be a text of at most {MAX_TEMPLATE} characters")
    return template or None
