"""`tokenizer.*` of the GGUF file, as llama.cpp's converter writes it. Knows keys, not bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.values import Metadata, Value, boolean, string, strings, u32

from .special_tokens import SpecialTokens
from .vocabulary import BYTE_LEVEL, CONTROL, SENTENCEPIECE, Vocabulary

QUANTIZATION_VERSION = 2
ROLE_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
LLAMA_CPP_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
KNOWN_ENDS = (
    *("<eos>", "<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<EOT>", "_<EOT>"),
    *("<turn|>", "<|tool_response>"),
)
"""Where llama.cpp has long ended answers without being told (src/llama-vocab.cpp)."""


def tokenizer_metadata(vocabulary: Vocabulary, special: SpecialTokens, control_ids: Mapping[str, int]) -> Metadata:
    """`tokenizer.*`. control_ids: roles that the architecture gives to ids, where these are control tokens."""
    keys = _vocabulary(vocabulary)
    keys |= {f"tokenizer.ggml.{ROLE_KEYS[role]}_token_id": u32(number) for role, number in special.ids.items()}
    keys |= _control_ids(control_ids, vocabulary.types)
    keys |= _ends(vocabulary, special.ends)
    keys["tokenizer.ggml.add_bos_token"] = boolean(special.add["bos"])
    keys["tokenizer.ggml.add_eos_token"] = boolean(special.add["eos"])
    keys["tokenizer.ggml.add_space_prefix"] = boolean(vocabulary.space_prefix)
    if special.suppressed:
        keys["tokenizer.ggml.suppress_tokens"] = Value("ARRAY[INT32]", np.array(special.suppressed, np.int32))
    if special.chat_template is not None:
        keys["tokenizer.chat_template"] = string(special.chat_template)
    return keys


def _vocabulary(vocabulary: Vocabulary) -> Metadata:
    """The arrays, and what kind they are."""
    keys = {"tokenizer.ggml.model": string(vocabulary.model)}
    if vocabulary.pre is not None:
        keys["tokenizer.ggml.pre"] = string(vocabulary.pre)
    keys["tokenizer.ggml.tokens"] = strings(vocabulary.tokens)
    if vocabulary.model != BYTE_LEVEL:
        keys["tokenizer.ggml.scores"] = Value("ARRAY[FLOAT32]", vocabulary.scores)
    keys["tokenizer.ggml.token_type"] = Value("ARRAY[INT32]", vocabulary.types)
    if vocabulary.model != SENTENCEPIECE:
        keys["tokenizer.ggml.merges"] = strings(vocabulary.merges)
    return keys


def _control_ids(ids: Mapping[str, int], types: NDArray[np.int32]) -> Metadata:
    return {
        f"tokenizer.ggml.{role}_token_id": u32(number)
        for role, number in ids.items()
        if number < len(types) and types[number] == CONTROL
    }


def _ends(vocabulary: Vocabulary, ends: list[int]) -> Metadata:
    """Where answers end besides eos: all of them in Ollama's key; in llama.cpp's two those it does not know by text."""
    others = ends[1:]
    if not others:
        return {}
    unknown = [number for number in others if vocabulary.tokens[number].decode() not in KNOWN_ENDS]
    if len(unknown) > len(LLAMA_CPP_ENDS):
        texts = ", ".join(repr(vocabulary.tokens[number].decode()) for number in unknown[len(LLAMA_CPP_ENDS) :])
        vocabulary.notices.append(f"answers end at {texts}, too: llama.cpp does not read that")
    keys = {key: u32(number) for key, number in zip(LLAMA_CPP_ENDS, unknown or others[:1], strict=False)}
    return {"tokenizer.ggml.eos_token_ids": Value("ARRAY[INT32]", np.array(ends, np.int32))} | keys
