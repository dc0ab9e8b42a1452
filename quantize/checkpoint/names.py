"""Names of tensors in checkpoints: what wraps those of a text model, and what is none of them.

Knows no bytes and no file; what a model's own tensors are called its table in `edge_gemma.models` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edge_gemma.errors import CheckpointError
from edge_gemma.models.tensor_table import HF_OUTPUT

_PREFIX = re.compile(r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.)")
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
"""What torch.compile, FSDP, activation checkpointing and DataParallel put into names."""
_TOP = {"layers", "embed_tokens", "embed_tokens_per_layer", "norm", "lm_head"}
"""The parts of a text model."""
_VISION = re.compile(r"(^|\.)(vision_tower|vision_model|multi_modal_projector|embed_vision)\.")
_AUDIO = re.compile(r"(^|\.)(audio_tower|embed_audio)\.")
_BUFFER = re.compile(r"(^|\.)(rotary_emb\w*\.\w+|embed_tokens(_per_layer)?\.embed_scale)$")  # recomputed by everyone
_VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")  # of TRL's reward training
_ADAPTED = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|original_module)\.")


def without_prefix(name: str) -> str:
    """The name of a tensor or module within the text model, whichever class wraps it."""
    return _PREFIX.sub("", name)


def is_vision(name: str) -> bool:
    """Whether a tensor or module belongs to the vision tower of a multimodal model."""
    return _VISION.search(name) is not None


def is_audio(name: str) -> bool:
    """Whether a tensor or module belongs to the audio tower of a multimodal model."""
    return _AUDIO.search(name) is not None


def is_value_head(name: str) -> bool:
    """Whether a tensor belongs to the head that TRL trains beside a model."""
    return _VALUE_HEAD.search(name) is not None


def is_unread(name: str) -> bool:
    """Whether nothing is made of a tensor, whichever model it is in: a tower, buffers, a value head."""
    return is_vision(name) or is_audio(name) or is_value_head(name) or _BUFFER.search(name) is not None


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
