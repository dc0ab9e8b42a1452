"""Reading the hyper-parameters that decoders share from GGUF metadata. Knows no architecture: defaults are arguments.

Two dialects are read, llama.cpp's and Ollama's, after our own keys under `edge_gemma.*`, which leave nothing to be
guessed. Keys that say the same thing must agree. Sources: llama.cpp's converter and loader, Ollama's convert_*.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TypeVar

from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.metadata import Metadata
from edge_gemma.models import limits
from edge_gemma.models.layers import periodic

T = TypeVar("T")

REQUIRED = (
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.key_length",
)


class GgufKeys:
    """The keys of one architecture in a file's metadata. A name such as "block_count" has no prefix.

    tensors: the names of those in the file, which some facts are told by alone.
    All methods raise ModelFormatError naming the key and its offset.
    """

    def __init__(self, metadata: Metadata, architecture: str, tensors: Collection[str] = ()) -> None:
        self.metadata, self.architecture, self.tensors = metadata, architecture, tensors

    # ---- single keys ---------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """The name with the architecture before it."""
        return f"{self.architecture}.{name}"

    def error(self, name: str, message: str) -> ModelFormatError:
        """The error to raise for what a key says."""
        return self.metadata.error(self.key(name), message)

    def demand(self, *names: str) -> None:
        """Refuse a file that lacks any of them."""
        missing = [self.key(name) for name in names if self.key(name) not in self.metadata]
        if missing:
            raise self.metadata.error(missing[0], f"required keys are missing: {', '.join(missing)}")

    def u32(self, name: str, *, lo: int, hi: int) -> int:
        """A whole number in lo..hi."""
        return self.metadata.u32(self.key(name), lo=lo, hi=hi)

    def width(self, name: str, limit: int) -> int:
        """The length of rows of weights: at most `limit`, in steps of the kernels."""
        value = self.u32(name, lo=limits.MULTIPLE, hi=limit)
        if value % limits.MULTIPLE:
            raise self.error(name, f"{value} is no multiple of {limits.MULTIPLE}")
        return value

    def per_layer(self, name: str, n_layers: int, *, lo: int, hi: int, default: int | None = None) -> tuple[int, ...]:
        """A whole number in lo..hi for each layer: the same, or an array of them."""
        key = self.key(name)
        if key not in self.metadata or not self.metadata.kind(key).startswith("ARRAY"):
            return (self.metadata.u32(key, default, lo=lo, hi=hi),) * n_layers
        values = [int(value) for value in self.metadata.int_array(key, n_layers)]
        for value in values:
            if not lo <= value <= hi:
                raise self.error(name, f"{value} is outside {lo}..{hi}")
        return tuple(values)

    def widths(self, name: str, n_layers: int, limit: int) -> tuple[int, ...]:
        """The length of rows of weights in each layer, see `width`."""
        values = self.per_layer(name, n_layers, lo=limits.MULTIPLE, hi=limit)
        for value in values:
            if value % limits.MULTIPLE:
                raise self.error(name, f"{value} is no multiple of {limits.MULTIPLE}")
        return values

    def softcap(self, name: str, default: float | None, *, known: bool) -> float | None:
        """A number above 0. `known`: the architecture has soft-caps."""
        if self.key(name) not in self.metadata:
            return default
        if not known:
            raise self.error(name, f"contradicts the architecture: {self.architecture} has no soft-cap")
        cap = self.metadata.f32(self.key(name))
        if cap <= 0:
            raise self.error(name, f"a soft-cap is above 0, this is {cap}")
        return cap

    # ---- keys of several spellings -------------------------------------------------------------------------------

    def spellings(self, *names: str) -> list[str]:
        """The keys present in the file, ours first, that any of `names` may stand for."""
        candidates = [f"{prefix}.{name}" for prefix in ("edge_gemma", self.architecture) for name in names]
        return [key for key in candidates if key in self.metadata]

    def agreeing(self, keys: list[str], read: Callable[[str], T], default: T) -> T:
        """The one value that all `keys` give; `default` if there are none."""
        values = [read(key) for key in keys]
        for key, value in zip(keys, values, strict=True):
            if value != values[0]:
                raise self.metadata.error(key, f"contradicts {keys[0]}: {value} here, {values[0]} there")
        return values[0] if values else default

    def agreeing_f32(self, *names: str, default: float, lo: float, hi: float = math.inf) -> float:
        """The number in lo..hi that all spellings give."""
        return self.agreeing(self.spellings(*names), lambda key: self.metadata.f32(key, lo=lo, hi=hi), default)

    # ---- what decoders share -------------------------------------------------------------------------------------

    def head_dim(self, suffix: str = "") -> int:
        """Of keys, values and the rotation alike. suffix: "_swa" for that of local layers, where they have another."""
        name = f"attention.key_length{suffix}"
        head_dim = self.u32(name, lo=limits.MIN_HEAD_DIM, hi=limits.MAX_HEAD_DIM)
        if head_dim % 2:
            raise self.error(name, f"{head_dim} is odd; the rotation needs pairs")
        for other in (f"attention.value_length{suffix}", f"rope.dimension_count{suffix}"):
            if self.metadata.u32(self.key(other), head_dim) != head_dim:
                raise self.error(other, f"must equal the key length, {head_dim}")
        return head_dim

    def kv_heads(self, n_heads: int, n_layers: int) -> tuple[int, ...]:
        """Of each layer a divisor of the query heads; missing means as many."""
        name = "attention.head_count_kv"
        found = self.per_layer(name, n_layers, lo=1, hi=n_heads, default=n_heads)
        for n_kv_heads in found:
            if n_heads % n_kv_heads:
                raise self.error(name, f"{n_kv_heads} does not divide the {n_heads} query heads")
        return found

    def n_kv_heads(self, n_heads: int, n_layers: int) -> int:
        """The same number in all layers."""
        found = self.kv_heads(n_heads, n_layers)
        if len(set(found)) != 1:
            raise self.error("attention.head_count_kv", "differs between layers, which is not supported")
        return found[0]

    def vocab_size(self) -> int:
        """What a key `vocab_size` says does not matter: the rows of the embedding must be as many as the tokens."""
        vocab_size = len(self.metadata.strings("tokenizer.ggml.tokens"))
        if not vocab_size:
            raise self.metadata.error("tokenizer.ggml.tokens", "the vocabulary is empty")
        return vocab_size

    def rms_eps(self, default: float | None) -> float:
        """Added to the mean square. Demanded where there is no default."""
        key = self.key("attention.layer_norm_rms_epsilon")
        return self.metadata.f32(key, default, lo=limits.MIN_EPS, hi=limits.MAX_EPS)

    def window(self, context_length: int, default: int | None, *, known: bool) -> int | None:
        """At most the context. 0 stands for "not given", as a missing key does. `known`: there are local layers."""
        name = "attention.sliding_window"
        window = min(self.metadata.u32(self.key(name), 0), context_length)
        if window and not known:
            raise self.error(name, f"contradicts the architecture: {self.architecture} has no local attention")
        if window or default is None:
            return window or None
        return min(default, context_length)

    def windows(self, n_layers: int, window: int | None, period: int) -> tuple[int | None, ...]:
        """Of each layer: a bool per layer says which are local, or the period at which a global one comes."""

        def read(key: str) -> tuple[bool, ...]:
            if self.metadata.kind(key) == "ARRAY[BOOL]":
                return tuple(self.metadata.bool_array(key, n_layers).tolist())
            return periodic(self.metadata.u32(key, lo=1, hi=limits.MAX_LAYERS), n_layers)

        keys = self.spellings("attention.sliding_window_pattern")
        local = self.agreeing(keys, read, periodic(period if window else 1, n_layers))
        if any(local) and window is None:
            raise self.metadata.error(keys[0], "names local layers, but there is no attention.sliding_window")
        return tuple(window if is_local else None for is_local in local)

    def rope_bases(self, default: float, default_local: float | None) -> tuple[float, float]:
        """On global layers, on local layers; without a default of their own these follow the global ones."""
        hi = limits.MAX_ROPE_BASE
        base = self.agreeing_f32("rope.freq_base", "rope.global.freq_base", default=default, lo=1, hi=hi)
        local_names = ("rope.freq_base_local", "rope.freq_base_swa", "rope.local.freq_base")
        return base, self.agreeing_f32(*local_names, default=default_local or base, lo=1, hi=hi)

    def rope_scale(self, default: float) -> float:
        """Divides positions of global layers. `default`: where the file says nothing of scaling."""
        type_name, names = "rope.scaling.type", ("rope.scale_linear", "rope.scaling.factor")
        type_key, spelled = self.key(type_name), self.spellings(*names)
        if type_key in self.metadata:
            default, kind = 1.0, self.metadata.string(type_key)
            if kind not in ("none", "linear"):
                raise self.error(type_name, f"{kind!r} is not supported (none and linear are)")
            if kind == "linear" and not spelled:
                raise self.error("rope.scaling.factor", "required key is missing: the scaling type is linear")
        scale = self.agreeing_f32(*names, default=default, lo=1, hi=limits.MAX_ROPE_SCALE)
        if scale != 1 and self.metadata.get(type_key) == "none":
            raise self.error(type_name, f"contradicts {spelled[0]}, which is {scale}")
        return scale
