"""Names, shapes and transforms: Hugging Face tensor -> GGUF tensor. A table; knows no bytes and no file.

llama.cpp's names. Two traps: `post_attention_layernorm` is the norm *before* the feed-forward in Gemma 1 and the one
*after* attention from Gemma 2 on; and Gemma's norms are stored as w with the model computing x * (1 + w), while GGUF
holds 1 + w.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edge_gemma.errors import CheckpointError

from .hf_config import Hyperparameters

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
HF_EMBEDDING = "embed_tokens.weight"
HF_OUTPUT = "lm_head.weight"

_PREFIX = re.compile(r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.)")
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
"""What torch.compile, FSDP, activation checkpointing and DataParallel put into names."""
_TOP = {"layers", "embed_tokens", "norm", "lm_head"}
"""The parts of a text model."""
_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|multi_modal_projector)\.")
_BUFFER = re.compile(r"(^|\.)(rotary_emb\w*\.\w+|embed_tokens\.embed_scale)$")  # recomputed by everyone
_VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")  # of TRL's reward training
_ADAPTED = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|original_module)\.")

MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Linear modules of a layer -> their GGUF names, the same in every Gemma."""


@dataclass(frozen=True)
class Target:
    """Where a checkpoint tensor goes: its GGUF name, the shape it must have, and what is added to it."""

    name: str
    shape: tuple[int, ...]
    shift: float = 0.0


def targets(model: Hyperparameters) -> dict[str, Target]:
    """Every tensor the model must have: Hugging Face name without prefix -> target, in the order of the GGUF file.

    The untied output is in it only if the model has one.
    """
    table = {HF_EMBEDDING: Target(EMBEDDING, (model.vocab_size, model.hidden_size))}
    if not model.tied:
        table[HF_OUTPUT] = Target(OUTPUT, (model.vocab_size, model.hidden_size))
    block = _matrices(model) | _norms(model)
    for layer in range(model.layers):
        for hf_name, target in block.items():
            name = f"blk.{layer}.{target.name}.weight"
            table[f"layers.{layer}.{hf_name}.weight"] = Target(name, target.shape, target.shift)
    table["norm.weight"] = Target("output_norm.weight", (model.hidden_size,), 1.0)
    return table


def _matrices(model: Hyperparameters) -> dict[str, Target]:
    width, hidden = model.hidden_size, model.intermediate_size
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes = {
        "attn_q": (q, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_output": (width, q),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }
    return {hf_name: Target(name, shapes[name]) for hf_name, name in MATRICES.items()}


def _norms(model: Hyperparameters) -> dict[str, Target]:
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if model.architecture != "gemma":
        names = {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    norms = {hf_name: Target(name, (model.hidden_size,), 1.0) for hf_name, name in names.items()}
    if model.architecture == "gemma3":
        norms["self_attn.q_norm"] = Target("attn_q_norm", (model.head_dim,), 1.0)
        norms["self_attn.k_norm"] = Target("attn_k_norm", (model.head_dim,), 1.0)
    return norms


def without_prefix(name: str) -> str:
    """The name of a tensor or module within the text model, whichever class wraps it."""
    return _PREFIX.sub("", name)


def is_vision(name: str) -> bool:
    """Whether a tensor or module belongs to the vision tower of a multimodal model."""
    return _VISION.search(name) is not None


def is_value_head(name: str) -> bool:
    """Whether a tensor belongs to the head that TRL trains beside a model."""
    return _VALUE_HEAD.search(name) is not None


def is_unread(name: str) -> bool:
    """Whether nothing is made of a tensor, whichever model it is in: the vision tower, buffers, a value head."""
    return is_vision(name) or is_value_head(name) or _BUFFER.search(name) is not None


def is_adapted(name: str) -> bool:
    """Whether PEFT gave the tensor its name, in a model whose adapter is not merged."""
    return _ADAPTED.search(name) is not None


def is_output(name: str) -> bool:
    """Whether a tensor is the `lm_head`, which a tied model has no need of."""
    return name == HF_OUTPUT or name.endswith(f".{HF_OUTPUT}")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names within the text model -> names in the checkpoint, without what wraps them all.

    Raises CheckpointError if two tensors of the checkpoint claim the same place.
    """
    split = {name: [part for part in name.split(".") if part not in _WRAPPERS] for name in names}
    shared = _shared(list(split.values()))
    found: dict[str, str] = {}
    for name, parts in split.items():
        short = without_prefix(".".join(parts[shared:]))
        if short in found:
            raise CheckpointError(f"tensors {found[short]!r} and {name!r} are the same tensor of the model")
        found[short] = name
    return found


def _shared(names: list[list[str]]) -> int:
    """How many parts, before those of a text model, all names begin with."""
    count = 0
    for parts in zip(*names, strict=False):
        if len(set(parts)) != 1 or parts[0] in _TOP or any(len(name) <= count + 1 for name in names):
            break
        count += 1
    return count
