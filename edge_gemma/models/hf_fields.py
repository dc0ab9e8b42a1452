"""Reading the hyper-parameters that decoders share from a config.json, of transformers 4 or 5. Knows no architecture.

transformers leaves out values that equal its defaults (always so in `text_config`), so each architecture has these.
"""

from __future__ import annotations

from typing import Any

from edge_gemma.errors import CheckpointError
from edge_gemma.models import limits
from edge_gemma.models.layers import periodic


class HfFields:
    """Typed access to one object of the config, absent and null keys falling back to transformers' defaults.

    All methods raise CheckpointError naming the file and the key.
    """

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
        self.values, self.defaults, self.where = values, defaults, where

    # ---- single keys ---------------------------------------------------------------------------------------------

    def error(self, key: str, message: str) -> CheckpointError:
        """The error to raise for what a key says."""
        return CheckpointError(f"{self.where}: {key} {message}")

    def get(self, key: str) -> Any:
        """Whatever stands there."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def integer(self, key: str, lo: int, hi: int) -> int:
        """A whole number in lo..hi."""
        value = self.get(key)
        if type(value) is not int or not lo <= value <= hi:
            raise self.error(key, f"must be an integer in {lo}..{hi}, got {value!r}")
        return value

    def width(self, key: str, limit: int) -> int:
        """The length of rows of weights: at most `limit`, in steps of the kernels."""
        value = self.integer(key, limits.MULTIPLE, limit)
        if value % limits.MULTIPLE:
            raise self.error(key, f"is {value}, no multiple of {limits.MULTIPLE}")
        return value

    def number(self, key: str, lo: float, hi: float) -> float:
        """A number in lo..hi."""
        value = self.get(key)
        if type(value) not in (int, float) or not lo <= value <= hi:  # false for NaN and infinities too
            raise self.error(key, f"must be a number in {lo:g}..{hi:g}, got {value!r}")
        return float(value)

    def softcap(self, key: str, unsaid_in_gguf: float | None) -> float | None:
        """A soft-cap, which an explicit null turns off. A GGUF file can say so only if it is off where it says nothing.

        unsaid_in_gguf: what there is where a GGUF file says nothing.
        """
        if self.values.get(key, 0) is None:
            if unsaid_in_gguf is not None:
                raise self.error(key, "is null; a model of this class without its soft-caps is not supported")
            return None
        return None if self.get(key) is None else self.number(key, 1e-3, 1e6)

    def object(self, key: str) -> dict[str, Any]:
        """An object, empty if absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {value!r}")
        return value or {}

    def refuse(self, *keys: str) -> None:
        """Refuse a model that any of these switches is on in."""
        for key in keys:
            if self.get(key):
                raise self.error(key, "is not supported")

    def demand_tanh_gelu(self, *, old_configs: bool) -> None:
        """Refuse other activations. old_configs: the first ones of Gemma say "gelu" in `hidden_act` and mean the tanh
        form (transformers #29402)."""
        tanh_gelu = "gelu_pytorch_tanh"
        activation = self.get("hidden_activation")
        if activation is None and old_configs:
            old = self.get("hidden_act")
            activation = tanh_gelu if old in ("gelu", None) else old
        if activation != tanh_gelu:
            raise self.error("hidden_activation", f"is {activation!r}; only {tanh_gelu} is supported")

    # ---- what decoders share -------------------------------------------------------------------------------------

    def head_dim(self) -> int:
        """Of keys, values and the rotation alike."""
        head_dim = self.integer("head_dim", limits.MIN_HEAD_DIM, limits.MAX_HEAD_DIM)
        if head_dim % 2:
            raise self.error("head_dim", f"is {head_dim}; the rotation needs pairs")
        return head_dim

    def n_kv_heads(self, n_heads: int) -> int:
        """A divisor of the query heads."""
        n_kv_heads = self.integer("num_key_value_heads", 1, n_heads)
        if n_heads % n_kv_heads:
            raise self.error("num_key_value_heads", f"is {n_kv_heads}, which does not divide {n_heads} heads")
        return n_kv_heads

    def local_layers(self, n_layers: int) -> tuple[bool, ...]:
        """Which layers are local: by the name of each one's kind, or by the period at which a global one comes."""
        types = self.get("layer_types")
        if types is None:
            default = self.values.get("_sliding_window_pattern", self.defaults["sliding_window_pattern"])
            period = HfFields(self.values, {"sliding_window_pattern": default}, self.where)
            return periodic(period.integer("sliding_window_pattern", 1, 1 << 16), n_layers)
        known = {"sliding_attention": True, "full_attention": False}
        named = isinstance(types, list) and all(isinstance(kind, str) and kind in known for kind in types)
        if not named or len(types) != n_layers:
            what = f"must name sliding_attention or full_attention for each of {n_layers} layers"
            raise self.error("layer_types", what)
        return tuple(known[kind] for kind in types)

    def rope(self) -> tuple[float, float, float]:
        """(base of global layers, base of local layers, linear scale of global layers).

        Local layers have a base of their own where `rope_local_base_freq` has a default.
        """
        parameters = self.object("rope_parameters")
        if parameters and not {"full_attention", "sliding_attention"} & parameters.keys():
            parameters = {"full_attention": parameters}  # transformers 5 for models with one base
        by_kind = HfFields(parameters, {}, self.where)
        full, local = by_kind.object("full_attention"), by_kind.object("sliding_attention")
        base = self._rope_base(full, "rope_theta")
        scale = _linear_scale(HfFields(full | self.object("rope_scaling"), {}, f"{self.where}: rope"))
        if self.defaults.get("rope_local_base_freq") is None:
            return base, base, scale
        if _linear_scale(HfFields(local, {}, f"{self.where}: rope of sliding_attention")) != 1.0:
            raise self.error("rope_parameters", "scale the positions of sliding_attention, which is not supported")
        return base, self._rope_base(local, "rope_local_base_freq"), scale

    def _rope_base(self, parameters: dict[str, Any], old_key: str) -> float:
        fields = HfFields(parameters, {"rope_theta": self.get(old_key)}, self.where)
        return fields.number("rope_theta", 1, limits.MAX_ROPE_BASE)


def _linear_scale(rope: HfFields) -> float:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise rope.error("rope_type", f"is {kind!r}; default and linear are supported")
    return rope.number("factor", 1, limits.MAX_ROPE_SCALE)
