"""The key-value section of the GGUF file, as llama.cpp's converter writes it for Gemma, plus `edge_gemma.*`.

Knows keys, not bytes (`output/writer.py`). llama.cpp guesses the attention scale and the pattern of local layers from
the number of layers; `edge_gemma.*` states them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edge_gemma import __version__
from edge_gemma.gguf.values import Metadata, Value, boolean, bools, f32, string, strings, u32

from .hf_config import Hyperparameters
from .special_tokens import SpecialTokens
from .vocabulary import CONTROL, Vocabulary

QUANTIZATION_VERSION = 2
LLAMA_CPP_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
KNOWN_ENDS = ("<eos>", "<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<EOT>", "_<EOT>")
"""Where llama.cpp has long ended answers without being told (src/llama-vocab.cpp)."""
CODEGEMMA_IDS = {"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107}


def model_metadata(model: Hyperparameters) -> Metadata:
    """`general.architecture` and the architecture's own keys."""
    arch = model.architecture
    keys = {
        f"{arch}.context_length": u32(model.context_length),
        f"{arch}.embedding_length": u32(model.hidden_size),
        f"{arch}.block_count": u32(model.layers),
        f"{arch}.feed_forward_length": u32(model.intermediate_size),
        f"{arch}.attention.head_count": u32(model.heads),
        f"{arch}.attention.head_count_kv": u32(model.kv_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(model.rms_norm_eps),
        f"{arch}.attention.key_length": u32(model.head_dim),
        f"{arch}.attention.value_length": u32(model.head_dim),
    }
    if model.attention_softcap is not None:
        keys[f"{arch}.attn_logit_softcapping"] = f32(model.attention_softcap)
    if model.final_softcap is not None:
        keys[f"{arch}.final_logit_softcapping"] = f32(model.final_softcap)
    if model.sliding_window is not None:
        keys[f"{arch}.attention.sliding_window"] = u32(model.sliding_window)
        if model.local_layers != usual_pattern(arch, model.layers):
            keys[f"{arch}.attention.sliding_window_pattern"] = bools(model.local_layers)
    return keys | _rope(model)


def usual_pattern(architecture: str, layers: int) -> tuple[bool, ...]:
    """The local layers llama.cpp assumes: every other one in Gemma 2, five of six in Gemma 3."""
    period = {"gemma": 1, "gemma2": 2, "gemma3": 6}[architecture]
    return tuple((layer + 1) % period != 0 for layer in range(layers))


def _rope(model: Hyperparameters) -> Metadata:
    arch, keys = model.architecture, {}
    if arch == "gemma3" or model.rope_base != 10_000.0:  # the loaders' default, left out for Gemma 1 and 2
        keys[f"{arch}.rope.freq_base"] = f32(model.rope_base)
    if arch == "gemma3":
        keys["gemma3.rope.freq_base_swa"] = f32(model.rope_base_local)
    if model.rope_scale != 1.0:
        keys[f"{arch}.rope.scaling.type"] = string("linear")
        keys[f"{arch}.rope.scaling.factor"] = f32(model.rope_scale)
    return keys


def explicit_metadata(
    *, scale: float, local_layers: Iterable[bool], rope_base: float, rope_base_local: float, rope_scale: float
) -> Metadata:
    """What llama.cpp's keys leave to be guessed. `scale` multiplies q.k; `rope_scale` divides global positions."""
    return {
        "edge_gemma.version": string(__version__),
        "edge_gemma.attention.scale": f32(scale),
        "edge_gemma.attention.sliding_window_pattern": bools(local_layers),
        "edge_gemma.rope.freq_base": f32(rope_base),
        "edge_gemma.rope.freq_base_local": f32(rope_base_local),
        "edge_gemma.rope.scale_linear": f32(rope_scale),
    }


def tokenizer_metadata(vocabulary: Vocabulary, special: SpecialTokens, architecture: str) -> Metadata:
    """`tokenizer.*`: a sentencepiece model ("llama"), without the space sentencepiece likes to put in front."""
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
    if architecture == "gemma":
        keys |= _codegemma_ids(vocabulary.types)
    keys |= _ends(vocabulary, special.ends)
    keys["tokenizer.ggml.add_bos_token"] = boolean(special.add["bos"])
    keys["tokenizer.ggml.add_eos_token"] = boolean(special.add["eos"])
    keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    if special.chat_template is not None:
        keys["tokenizer.chat_template"] = string(special.chat_template)
    return keys


def _codegemma_ids(types: NDArray[np.int32]) -> Metadata:
    return {
        f"tokenizer.ggml.{role}_token_id": u32(number)
        for role, number in CODEGEMMA_IDS.items()
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
