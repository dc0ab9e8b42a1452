"""Which tokens begin, end and pad a text, whether they are added by default, and the chat template.

Knows the tokenizer files of a Hugging Face folder; knows no GGUF key. A template is carried over as text, never run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize.checkpoint import CheckpointFolder
from edge_gemma.quantize.vocab import CONTROL, UNKNOWN, Vocabulary

GEMMA_IDS = {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
MAX_TEMPLATE = 1 << 20


@dataclass(frozen=True)
class SpecialTokens:
    """`ids` by role (bos, eos, unk, pad), `add` for bos and eos, and the chat template if there is one."""

    ids: dict[str, int]
    add: dict[str, bool]
    chat_template: str | None


def read_special_tokens(folder: CheckpointFolder, vocabulary: Vocabulary, config: dict[str, Any]) -> SpecialTokens:
    """Roles from tokenizer_config.json (by text), else config.json (by id), else Gemma's own ids.

    Raises CheckpointError if a role's token is outside the vocabulary or is ordinary text.
    """
    tokenizer = folder.json("tokenizer_config.json") or {}
    ids = {role: _token_id(role, tokenizer, config, vocabulary) for role in GEMMA_IDS}
    for role, number in ids.items():
        if not 0 <= number < len(vocabulary.tokens):
            raise CheckpointError(f"{folder.path}: {role} token {number} is outside {len(vocabulary.tokens)} tokens")
        if vocabulary.types[number] not in (CONTROL, UNKNOWN):
            text = vocabulary.tokens[number].decode(errors="replace")
            raise CheckpointError(f"{folder.path}: {role} token {number} is {text!r}, which is no control token")
    add = {role: _flag(tokenizer, role, default) for role, default in (("bos", True), ("eos", False))}
    return SpecialTokens(ids, add, _chat_template(folder, tokenizer))


def _token_id(role: str, tokenizer: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary) -> int:
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
    return GEMMA_IDS[role]


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
