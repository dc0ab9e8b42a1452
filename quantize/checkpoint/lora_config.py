"""adapter_config.json of PEFT: ranks and factors, and what is refused. Knows no tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder

NAME = "adapter_config.json"
REFUSED = {
    "use_dora": "DoRA is not merged",
    "lora_bias": "trained biases are not merged",
    "fan_in_fan_out": "matrices are not stored that way",
    "modules_to_save": "whole modules are not merged",
    "layer_replication": "repeated layers are not converted",
    "target_parameters": "only the matrices of modules are merged",
    "trainable_token_indices": "changed tokens are not merged",
    "alora_invocation_tokens": "an adapter that acts on some tokens only cannot be merged",
    "use_qalora": "QA-LoRA is not merged",
    "use_bdlora": "BD-LoRA is not merged",
    "arrow_config": "several adapters chosen while running cannot be merged",
    "kasa_config": "KaSA is not merged",
    "velora_config": "VeLoRA is not merged",
    "monteclora_config": "MonteCLoRA is not merged",
}
"""Keys of PEFT 0.21 that change what the factors mean, and why they are refused unless null, false or empty."""

INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
"""The others (pissa, olora, corda, loftq, ...) change the base model too."""

MAX_RANK = 1 << 16
_MODULE = re.compile(r"\^?[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class AdapterConfig:
    """How the factors are to be multiplied. `base` is what the adapter says it was made for."""

    path: Path
    base: str
    rank: int
    alpha: float
    root_of_rank: bool  # rsLoRA divides by the root of the rank
    rank_pattern: dict[str, Any]
    alpha_pattern: dict[str, Any]

    def rank_of(self, module: str) -> int:
        """The rank for `module`, a full name as PEFT has it."""
        return _rank(_by_pattern(self.rank_pattern, module, self.rank), str(self.path))

    def factor_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank), for `module`."""
        rank = self.rank_of(module)
        alpha = _alpha(_by_pattern(self.alpha_pattern, module, self.alpha), str(self.path))
        return alpha / (rank**0.5 if self.root_of_rank else rank)


def read_adapter_config(folder: CheckpointFolder) -> AdapterConfig:
    """The configuration in `folder`. Raises CheckpointError naming the key that is wrong or not supported."""
    config = folder.json(NAME)
    path = folder.path / NAME
    if config is None:
        text = "a folder saved by PEFT is needed"
        if (folder.path / "config.json").is_file():
            text = "this is a model; give it as the source, and --lora the folder of an adapter"
        raise CheckpointError(f"{folder.path}: no {NAME}; {text}")
    _refuse(config, str(path))
    base = config.get("base_model_name_or_path")
    return AdapterConfig(
        path=path,
        base=base if isinstance(base, str) else "",
        rank=_rank(config.get("r", 8), str(path)),
        alpha=_alpha(config.get("lora_alpha", 8), str(path)),
        root_of_rank=_flag(config, "use_rslora", str(path)),
        rank_pattern=_pattern(config, "rank_pattern", str(path)),
        alpha_pattern=_pattern(config, "alpha_pattern", str(path)),
    )


def _refuse(config: dict[str, Any], where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {config.get('peft_type')!r}; LORA is merged")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias is {config['bias']!r}: {REFUSED['lora_bias']}")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{where}: {key}: {reason}")
    start = config.get("init_lora_weights")
    if start not in INITIALIZATIONS:
        text = "changes the base model too; save the adapter converted to plain LoRA"
        raise CheckpointError(f"{where}: init_lora_weights {start!r} {text}")


def _flag(config: dict[str, Any], key: str, where: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} must be true or false, got {value!r}")
    return bool(value)


def _rank(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise CheckpointError(f"{where}: a rank must be an integer in 1..{MAX_RANK}, got {value!r}")
    return value


def _alpha(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not -1e6 <= value <= 1e6:  # false for NaN too
        raise CheckpointError(f"{where}: an alpha must be a number up to a million, got {value!r}")
    return float(value)


def _pattern(config: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """A rank or alpha per module. PEFT takes regular expressions, of which only names are run here."""
    value = config.get(key) or {}
    if not isinstance(value, dict) or not all(_MODULE.fullmatch(name) for name in value):
        raise CheckpointError(f"{where}: {key} must give a number for each of some module names")
    return value


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    for name, value in pattern.items():
        if module == name.removeprefix("^") or (name[0] != "^" and module.endswith(f".{name}")):
            return value
    return default
