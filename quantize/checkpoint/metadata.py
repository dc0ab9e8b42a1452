"""`tokenizer.*` of the GGUF file, as llama.cpp's converter writes it for Gemma. Knows keys, not bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.values import Metadata, Value, boolean, string, strings, u32

from .special_tokens import SpecialTokens
from .vocabulary import CONTROL, Vocabulary

QUANTIZATION_VERSION = 2
LLAMA_CPP_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
KNOWN_ENDS = ("<eos>", "<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<EOT>", "_<EOT>")
"""Where llama.cpp has long ended answers without being told (src/llama-vocab.cpp)."""


def tokenizer_metadata(vocabulary: Vocabulary, special: SpecialTokens, control_ids: Mapping[str, int]) -> Metadata:
    """`tokenizer.*`: a sentencepiece model ("llama"), without the space sentencepiece likes to put in front.

    control_ids: roles that the architecture gives to ids, where these are control tokens.
    """
    keys = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": strings(vocabulary.tokens),
        "tokenizer.ggml.scores": Value("ARRAY[FLOAT32]", vocabulary.scores),
        "tokenizer.ggml.token_type": Value("ARRAY[INT32]", vocabulary.types),
        "tokenizer.ggml.bos_token_id": u32(special.ids["bos"]),
        "tokenizer.ggml.eos_token_id": u32(special.ids["eos"]),
        "tokenizer.ggml.unknown_token_id": u32(special.ids["unk"]),
    }
    if "pad" in special.ids:
        keys["tokenizer.ggml.padding_token_id"] = u32(special.ids["pad"])
    keys |= _control_ids(control_ids, vocabulary.types)
    keys |= _ends(vocabulary, special.ends)
    keys["tokenizer.ggml.add_bos_token"] = boolean(special.add["bos"])
    keys["tokenizer.ggml.add_eos_token"] = boolean(special.add["eos"])
    keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    if special.chat_template is not None:
        keys["tokenizer.chat_template"] = string(special.chat_template)
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
