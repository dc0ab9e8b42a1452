"""`GemmaConfig`: the hyper-parameters of a Gemma 1, 2 or 3 (text) model, from GGUF metadata. Knows no tensor data.

Two dialects are read, llama.cpp's and Ollama's, after our own keys under `edge_gemma.*`, which leave nothing to be
guessed. Keys that say the same thing must agree. Sources: llama.cpp's converter and loader of each architecture,
Ollama's convert_gemma*.go, the configurations Google published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from edge_gemma.gguf.file import GgufFile
from edge_gemma.gguf.metadata import Metadata
from edge_gemma.graph.states import AttentionState, Rope

T = TypeVar("T")

MAX_LAYERS = 256
MAX_WIDTH = 16384
MAX_FF_WIDTH = 2**18
MAX_HEADS = 256
MAX_HEAD_DIM = 1024
MAX_CONTEXT = 2**22
MULTIPLE = 32  # of every row of weights: the kernels' step


@dataclass(frozen=True)
class _Family:
    """What an architecture is, and what it means where a file does not say."""

    attn_softcap: float | None
    final_softcap: float | None
    window: int | None
    period: int
    """Every `period`-th layer is global, the others are local; 1: all are global."""
    rope_base: float
    rope_base_local: float | None
    """None: the same as `rope_base`."""
    qk_norm: bool
    post_norms: bool
    local_attention: bool
    """The architecture has local layers and soft-caps at all."""


FAMILIES = {
    "gemma": _Family(None, None, None, 1, 1e4, None, qk_norm=False, post_norms=False, local_attention=False),
    "gemma2": _Family(50.0, 30.0, 4096, 2, 1e4, None, qk_norm=False, post_norms=True, local_attention=True),
    "gemma3": _Family(None, None, None, 6, 1e6, 1e4, qk_norm=True, post_norms=True, local_attention=True),
}

# Ollama's early Gemma 3 files lack the position scale of the larger models, and give the 1B a soft-cap it has not.
# Published sizes, as (n_layers, d_model):
_GEMMA3_1B = (26, 1152)
_GEMMA3_SCALED = {(34, 2560), (48, 3840), (62, 5376)}
_GEMMA3_SCALE = 8.0


@dataclass(frozen=True)
class GemmaConfig:
    """Hyper-parameters, checked: every field is in the range that the runtime can execute."""

    architecture: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    """Positions the model was trained for."""
    rms_eps: float
    attn_scale: float
    """Multiplies the product of query and key."""
    attn_softcap: float | None
    final_softcap: float | None
    window: int | None
    """On a local layer a key is visible when query position - key position < window. None: no layer is local."""
    local_layers: tuple[bool, ...]
    rope_base: float
    """On global layers."""
    rope_base_local: float
    rope_scale: float
    """Divides positions on global layers; local layers never scale."""
    embedding_scale: float
    qk_norm: bool
    """Queries and keys pass an RMS norm per head, before the rotation."""
    post_norms: bool
    """Attention and feed-forward outputs pass an RMS norm before they are added."""

    @property
    def states(self) -> list[AttentionState]:
        """What each layer keeps of a sequence."""
        windows = (self.window if local else None for local in self.local_layers)
        return [AttentionState(self.n_kv_heads, self.head_dim, window) for window in windows]

    def rope(self, layer: int) -> Rope:
        """The rotary embedding of a layer."""
        if self.local_layers[layer]:
            return Rope(self.head_dim, self.rope_base_local)
        return Rope(self.head_dim, self.rope_base, self.rope_scale)

    @classmethod
    def from_gguf(cls, file: GgufFile) -> Self:
        """Read and check the metadata of `file`. Raises ModelFormatError naming the key and its offset."""
        keys = _Keys(file.metadata)
        family = keys.family
        keys.demand(
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "attention.head_count",
            "attention.key_length",
        )
        n_layers = keys.u32("block_count", lo=1, hi=MAX_LAYERS)
        d_model = keys.width("embedding_length", MAX_WIDTH)
        n_heads = keys.u32("attention.head_count", lo=1, hi=MAX_HEADS)
        head_dim = _head_dim(keys)
        context_length = keys.u32("context_length", lo=1, hi=MAX_CONTEXT)
        window = _window(keys, context_length)
        rope_base, rope_base_local = _rope_bases(keys)
        return cls(
            architecture=keys.architecture,
            n_layers=n_layers,
            d_model=d_model,
            d_ff=keys.width("feed_forward_length", MAX_FF_WIDTH),
            n_heads=n_heads,
            n_kv_heads=_n_kv_heads(keys, n_heads, n_layers),
            head_dim=head_dim,
            vocab_size=_vocab_size(keys),
            context_length=context_length,
            rms_eps=_rms_eps(keys),
            attn_scale=_attn_scale(keys, n_layers, d_model, n_heads, head_dim),
            attn_softcap=keys.softcap("attn_logit_softcapping", family.attn_softcap),
            final_softcap=_final_softcap(keys, n_layers, d_model),
            window=window,
            local_layers=_local_layers(keys, n_layers, window),
            rope_base=rope_base,
            rope_base_local=rope_base_local,
            rope_scale=_rope_scale(keys, n_layers, d_model),
            embedding_scale=math.sqrt(d_model),
            qk_norm=family.qk_norm,
            post_norms=family.post_norms,
        )


class _Keys:
    """The keys of one architecture in a file's metadata. A name such as "block_count" has no prefix."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.architecture = metadata.string("general.architecture")
        if self.architecture not in FAMILIES:
            raise metadata.error(
                "general.architecture", f"{self.architecture!r} is not supported ({', '.join(FAMILIES)} are)"
            )
        self.family = FAMILIES[self.architecture]

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def demand(self, *names: str) -> None:
        missing = [self.key(name) for name in names if self.key(name) not in self.metadata]
        if missing:
            raise self.metadata.error(missing[0], f"required keys are missing: {', '.join(missing)}")

    def u32(self, name: str, *, lo: int, hi: int) -> int:
        return self.metadata.u32(self.key(name), lo=lo, hi=hi)

    def width(self, name: str, limit: int) -> int:
        """A row length: MULTIPLE..limit, in steps of MULTIPLE."""
        value = self.u32(name, lo=MULTIPLE, hi=limit)
        if value % MULTIPLE:
            raise self.metadata.error(self.key(name), f"{value} is no multiple of {MULTIPLE}")
        return value

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
        return self.agreeing(self.spellings(*names), lambda key: self.metadata.f32(key, lo=lo, hi=hi), default)

    def softcap(self, name: str, default: float | None) -> float | None:
        key = self.key(name)
        if key not in self.metadata:
            return default
        if not self.family.local_attention:
            raise self.metadata.error(key, f"contradicts the architecture: {self.architecture} has no soft-cap")
        cap = self.metadata.f32(key)
        if cap <= 0:
            raise self.metadata.error(key, f"a soft-cap is above 0, this is {cap}")
        return cap


def _head_dim(keys: _Keys) -> int:
    head_dim = keys.u32("attention.key_length", lo=8, hi=MAX_HEAD_DIM)
    if head_dim % 2:
        raise keys.metadata.error(keys.key("attention.key_length"), f"{head_dim} is odd; the rotation needs pairs")
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.metadata.u32(keys.key(name), head_dim) != head_dim:
            raise keys.metadata.error(keys.key(name), f"must equal the key length, {head_dim}")
    return head_dim


def _n_kv_heads(keys: _Keys, n_heads: int, n_layers: int) -> int:
    """One number, or one per layer that are all the same; missing means as many as query heads."""
    key = keys.key("attention.head_count_kv")
    if key in keys.metadata and keys.metadata.kind(key).startswith("ARRAY"):
        per_layer = set(keys.metadata.int_array(key, n_layers).tolist())
        if len(per_layer) != 1:
            raise keys.metadata.error(key, "differs between layers, which is not supported")
        n_kv_heads = int(per_layer.pop())
        if not 1 <= n_kv_heads <= n_heads:
            raise keys.metadata.error(key, f"{n_kv_heads} is outside 1..{n_heads}")
    else:
        n_kv_heads = keys.metadata.u32(key, n_heads, lo=1, hi=n_heads)
    if n_heads % n_kv_heads:
        raise keys.metadata.error(key, f"{n_kv_heads} does not divide the {n_heads} query heads")
    return n_kv_heads


def _vocab_size(keys: _Keys) -> int:
    """What a key `vocab_size` says does not matter: the rows of the embedding must be as many as the tokens."""
    vocab_size = len(keys.metadata.strings("tokenizer.ggml.tokens"))
    if not vocab_size:
        raise keys.metadata.error("tokenizer.ggml.tokens", "the vocabulary is empty")
    return vocab_size


def _rms_eps(keys: _Keys) -> float:
    """Ollama leaves it out of multimodal Gemma 3; it is 1e-6 in every Gemma."""
    default = 1e-6 if keys.architecture == "gemma3" else None
    return keys.metadata.f32(keys.key("attention.layer_norm_rms_epsilon"), default, lo=1e-12, hi=1e-2)


def _attn_scale(keys: _Keys, n_layers: int, d_model: int, n_heads: int, head_dim: int) -> float:
    """Only we write it. Without it, the 27B of Gemma 2 and 3 (46 and 62 layers) divide by model width per head."""
    is_27b = (keys.architecture, n_layers) in {("gemma2", 46), ("gemma3", 62)}
    default = 1 / math.sqrt(d_model / n_heads if is_27b else head_dim)
    return keys.agreeing_f32("attention.scale", default=default, lo=1e-6)


def _final_softcap(keys: _Keys, n_layers: int, d_model: int) -> float | None:
    cap = keys.softcap("final_logit_softcapping", keys.family.final_softcap)
    wrong = keys.architecture == "gemma3" and (n_layers, d_model) == _GEMMA3_1B and cap == 30
    return None if wrong else cap


def _window(keys: _Keys, context_length: int) -> int | None:
    """At most the context. 0 stands for "not given", as a missing key does."""
    key = keys.key("attention.sliding_window")
    window = min(keys.metadata.u32(key, 0), context_length)
    if window and not keys.family.local_attention:
        raise keys.metadata.error(key, f"contradicts the architecture: {keys.architecture} has no local attention")
    if window or keys.family.window is None:
        return window or None
    return min(keys.family.window, context_length)


def _local_layers(keys: _Keys, n_layers: int, window: int | None) -> tuple[bool, ...]:
    """Which layers are local: a bool per layer, or the period at which a global one comes, or the family's period."""
    metadata = keys.metadata

    def read(key: str) -> tuple[bool, ...]:
        if metadata.kind(key) == "ARRAY[BOOL]":
            return tuple(metadata.bool_array(key, n_layers).tolist())
        return _periodic(metadata.u32(key, lo=1, hi=MAX_LAYERS), n_layers)

    default = _periodic(keys.family.period if window else 1, n_layers)
    pattern_keys = keys.spellings("attention.sliding_window_pattern")
    local = keys.agreeing(pattern_keys, read, default)
    if any(local) and window is None:
        raise metadata.error(pattern_keys[0], "names local layers, but there is no attention.sliding_window")
    return local


def _periodic(period: int, n_layers: int) -> tuple[bool, ...]:
    return tuple(i % period < period - 1 for i in range(n_layers))


def _rope_bases(keys: _Keys) -> tuple[float, float]:
    """On global layers, on local layers."""
    default = keys.family.rope_base
    base = keys.agreeing_f32("rope.freq_base", "rope.global.freq_base", default=default, lo=1, hi=1e9)
    local_names = ("rope.freq_base_local", "rope.freq_base_swa", "rope.local.freq_base")
    return base, keys.agreeing_f32(*local_names, default=keys.family.rope_base_local or base, lo=1, hi=1e9)


def _rope_scale(keys: _Keys, n_layers: int, d_model: int) -> float:
    metadata, type_key = keys.metadata, keys.key("rope.scaling.type")
    spelled = keys.spellings("rope.scale_linear", "rope.scaling.factor")
    if type_key not in metadata:
        scaled = keys.architecture == "gemma3" and (n_layers, d_model) in _GEMMA3_SCALED
        default = _GEMMA3_SCALE if scaled else 1.0
    elif (kind := metadata.string(type_key)) not in ("none", "linear"):
        raise metadata.error(type_key, f"{kind!r} is not supported (none and linear are)")
    elif kind == "linear" and not spelled:
        raise metadata.error(keys.key("rope.scaling.factor"), "required key is missing: the scaling type is linear")
    else:
        default = 1.0
    scale = keys.agreeing_f32("rope.scale_linear", "rope.scaling.factor", default=default, lo=1, hi=1024)
    if scale != 1 and metadata.get(type_key) == "none":
        raise metadata.error(type_key, f"contradicts {spelled[0]}, which is {scale}")
    return scale
