"""config.json of transformers 4 and 5 -> the hyper-parameters of a Gemma text model. Knows no tensor and no GGUF key.

transformers leaves out values that equal its defaults (always so in `text_config`), so the defaults stand here too;
source: configuration_gemma.py, configuration_gemma2.py and configuration_gemma3.py of transformers 4.57 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import CheckpointError

ARCHITECTURES = {
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}
QUANTIZATION = ("quantization_config", "quantization", "compression_config")
MULTIPLE = 32  # the runtime's step through a row of weights
MULTIMODAL = "Gemma3ForConditionalGeneration"

_COMMON: dict[str, Any] = {"head_dim": 256, "rms_norm_eps": 1e-6}
_GEMMA2 = _COMMON | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": _COMMON
    | {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
    },
    "gemma2": _GEMMA2
    | {
        "vocab_size": 256_000,
        "max_position_embeddings": 8192,
        "rope_theta": 10_000.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
    },
    "gemma3": _GEMMA2
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    },
}


@dataclass(frozen=True)
class Hyperparameters:
    """A Gemma text model. `local_layers[i]` is True where layer i sees only the last `sliding_window` positions."""

    architecture: str  # gemma, gemma2 or gemma3
    multimodal: bool
    vocab_size: int
    vocab_size_given: bool  # False: the default, which says little about the tokenizer
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    attention_scale: float
    attention_softcap: float | None
    final_softcap: float | None
    sliding_window: int | None
    local_layers: tuple[bool, ...]
    rope_base: float
    rope_base_local: float
    rope_scale: float  # positions of global layers are divided by this
    tied: bool


def read_hyperparameters(config: dict[str, Any], where: str = "config.json") -> Hyperparameters:
    """The hyper-parameters in a parsed config.json. Raises CheckpointError naming the key at fault."""
    name = _architecture(config, where)
    architecture = ARCHITECTURES[name]
    text = config
    if name == MULTIMODAL:
        text = config.get("text_config") or {}
        where += ": text_config"
    if not isinstance(text, dict):
        raise CheckpointError(f"{where} must be an object, got {text!r}")
    fields = _Fields(text, DEFAULTS[architecture], where)
    _refuse_variants(fields, architecture)
    return _build(fields, architecture, name == MULTIMODAL, _tied(config, text, where))


def quantization(config: dict[str, Any]) -> str:
    """How config.json says that the weights are quantized; empty if it does not. Mergers leave it in when they are not.

    `quantization` is the key of MLX.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = next((value for place in places for key in QUANTIZATION if (value := place.get(key))), None)
    method = found.get("quant_method") if isinstance(found, dict) else None
    return str(method) if method else "by a method that is not named" if found else ""


def _architecture(config: dict[str, Any], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(ARCHITECTURES):
        raise CheckpointError(f"{where}: architectures is {names!r}; one of {', '.join(ARCHITECTURES)} is converted")
    return str(names[0])


def _tied(config: dict[str, Any], text: dict[str, Any], where: str) -> bool:
    given = [source.get("tie_word_embeddings") for source in (config, text)]
    tied = next((value for value in given if value is not None), True)
    if not isinstance(tied, bool):
        raise CheckpointError(f"{where}: tie_word_embeddings must be true or false, got {tied!r}")
    return tied


class _Fields:
    """Typed access to one object of the config, absent and null keys falling back to transformers' defaults."""

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
        self.values, self.defaults, self.where = values, defaults, where

    def get(self, key: str) -> Any:
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"must be an integer in {low}..{high}, got {value!r}")
        return value

    def multiple(self, key: str, high: int) -> int:
        value = self.integer(key, MULTIPLE, high)
        if value % MULTIPLE:
            raise self.error(key, f"is {value}, no multiple of {MULTIPLE}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not low <= value <= high:  # false for NaN and infinities too
            raise self.error(key, f"must be a number in {low:g}..{high:g}, got {value!r}")
        return float(value)

    def softcap(self, key: str) -> float | None:
        """A soft-cap. Gemma 2 has them by default and an explicit null turns one off, which GGUF cannot express."""
        if key in self.defaults and self.values.get(key, 0) is None:
            raise self.error(key, "is null; Gemma 2 without its soft-caps is not supported")
        return None if self.get(key) is None else self.number(key, 1e-3, 1e6)

    def error(self, key: str, message: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {key} {message}")


def _refuse_variants(fields: _Fields, architecture: str) -> None:
    for key in ("attention_bias", "use_bidirectional_attention"):
        if fields.get(key):
            raise fields.error(key, "is not supported")
    activation = fields.get("hidden_activation")
    if activation is None and architecture == "gemma":
        # The first Gemma configs say "gelu" in hidden_act and mean the tanh form (transformers #29402).
        activation = "gelu_pytorch_tanh" if fields.get("hidden_act") in ("gelu", None) else fields.get("hidden_act")
    if activation != "gelu_pytorch_tanh":
        raise fields.error("hidden_activation", f"is {activation!r}; only gelu_pytorch_tanh is supported")
    if architecture == "gemma3" and fields.get("attn_logit_softcapping") is not None:
        raise fields.error("attn_logit_softcapping", "is not part of Gemma 3")


def _build(fields: _Fields, architecture: str, multimodal: bool, tied: bool) -> Hyperparameters:
    layers = fields.integer("num_hidden_layers", 1, 256)
    heads = fields.integer("num_attention_heads", 1, 256)
    head_dim = fields.integer("head_dim", 8, 1024)
    if head_dim % 2:
        raise fields.error("head_dim", f"is {head_dim}; the rotation needs pairs")
    context_length = fields.integer("max_position_embeddings", 1, 1 << 22)
    scalar = float(head_dim) if architecture == "gemma" else fields.number("query_pre_attn_scalar", 1e-3, 1e6)
    rope_base, rope_base_local, rope_scale = _rope(fields, architecture)
    local_layers = _local_layers(fields, architecture, layers)
    return Hyperparameters(
        architecture=architecture,
        multimodal=multimodal,
        vocab_size=fields.integer("vocab_size", 1, 1 << 20),
        vocab_size_given=fields.values.get("vocab_size") is not None,
        hidden_size=fields.multiple("hidden_size", 16384),
        intermediate_size=fields.multiple("intermediate_size", 1 << 18),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=head_dim,
        context_length=context_length,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1e-2),
        attention_scale=scalar**-0.5,
        attention_softcap=fields.softcap("attn_logit_softcapping") if architecture == "gemma2" else None,
        final_softcap=fields.softcap("final_logit_softcapping") if architecture != "gemma" else None,
        sliding_window=min(fields.integer("sliding_window", 1, 1 << 22), context_length) if any(local_layers) else None,
        local_layers=local_layers,
        rope_base=rope_base,
        rope_base_local=rope_base_local,
        rope_scale=rope_scale,
        tied=tied,
    )


def _kv_heads(fields: _Fields, heads: int) -> int:
    kv_heads = fields.integer("num_key_value_heads", 1, heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads")
    return kv_heads


def _local_layers(fields: _Fields, architecture: str, layers: int) -> tuple[bool, ...]:
    if architecture == "gemma":
        return (False,) * layers
    types = fields.get("layer_types")
    if types is None:
        default = fields.values.get("_sliding_window_pattern", fields.defaults["sliding_window_pattern"])
        period = _Fields(fields.values, {"sliding_window_pattern": default}, fields.where)
        every = period.integer("sliding_window_pattern", 1, 1 << 16)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or len(types) != layers or not all(isinstance(t, str) and t in known for t in types):
        raise fields.error("layer_types", f"must name sliding_attention or full_attention for each of {layers} layers")
    return tuple(known[t] for t in types)


def _rope(fields: _Fields, architecture: str) -> tuple[float, float, float]:
    """(base of global layers, base of local layers, linear scale of global layers)."""
    parameters = _objects(fields, "rope_parameters")
    if parameters and not {"full_attention", "sliding_attention"} & parameters.keys():
        parameters = {"full_attention": parameters}  # transformers 5 for models with one base
    full = _objects(_Fields(parameters, {}, fields.where), "full_attention")
    local = _objects(_Fields(parameters, {}, fields.where), "sliding_attention")
    scaling = full | _objects(fields, "rope_scaling")
    base = _Fields(full, {"rope_theta": fields.get("rope_theta")}, fields.where).number("rope_theta", 1, 1e9)
    scale = _linear_scale(_Fields(scaling, {}, f"{fields.where}: rope"))
    if architecture != "gemma3":
        return base, base, scale
    fallback = {"rope_theta": fields.get("rope_local_base_freq")}
    if _linear_scale(_Fields(local, {}, f"{fields.where}: rope of sliding_attention")) != 1.0:
        raise fields.error("rope_parameters", "scale the positions of sliding_attention, which is not supported")
    return base, _Fields(local, fallback, fields.where).number("rope_theta", 1, 1e9), scale


def _objects(fields: _Fields, key: str) -> dict[str, Any]:
    value = fields.get(key)
    if value is not None and not isinstance(value, dict):
        raise fields.error(key, f"must be an object, got {value!r}")
    return value or {}


def _linear_scale(rope: _Fields) -> float:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise rope.error("rope_type", f"is {kind!r}; default and linear are supported")
    return rope.number("factor", 1, 1024)
