"""What a model says of itself to the runtime and to the quantizer, whichever its architecture. Knows none of them.

`Config` has the hyper-parameters; what differs between layers is in a `LayerConfig` of each. An `Architecture` makes a
`Config` of a GGUF file or a config.json, says which tensors there are, and records the forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_gemma.gguf.values import Metadata
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.graph.states import AttentionState, Rope
from edge_gemma.models.embedding import Embedding
from edge_gemma.models.gguf_keys import GgufKeys
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.layers import Experts, LayerConfig
from edge_gemma.models.tensor_table import TensorSpec
from edge_gemma.models.weights import Weights


@dataclass(frozen=True)
class Config:
    """Hyper-parameters, checked: every field is in the range that the runtime can execute."""

    model: Architecture
    d_model: int
    n_heads: int
    vocab_size: int
    """Rows of the embedding."""
    context_length: int
    """Positions the model was trained for."""
    rms_eps: float
    attn_scale: float
    """Multiplies the product of query and key."""
    attn_softcap: float | None
    final_softcap: float | None
    embedding_scale: float
    layers: tuple[LayerConfig, ...]
    per_layer_input: int = 0
    """Width of the per-layer embeddings of a token; 0: there are none."""
    experts: Experts | None = None
    embedding: Embedding | None = None
    """What is made of a text; None: the model continues texts."""
    unused_rope: Rope | None = None
    """What the file says of local layers where all are global, or the other way round: carried over, not run."""

    @property
    def architecture(self) -> str:
        """GGUF's name of it."""
        return self.model.name

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Which layers see a window of positions only."""
        return tuple(layer.window is not None for layer in self.layers)

    @property
    def states(self) -> list[AttentionState]:
        """What is kept of a sequence, of each layer that shares no other's."""
        return self.model.states(self)

    def rope(self, layer: int) -> Rope:
        """The rotary embedding of a layer."""
        return self.layers[layer].rope

    def tensors(self) -> list[TensorSpec]:
        """Every tensor, in the order of the files we write."""
        return self.model.tensors(self)

    def unused_tensors(self) -> list[TensorSpec]:
        """What files may hold that nothing reads."""
        return self.model.unused_tensors(self)

    def of_kind(self, *, local: bool) -> LayerConfig | None:
        """The first local or the first global layer."""
        return next((layer for layer in self.layers if (layer.window is not None) == local), None)

    def with_windows(self, windows: tuple[int | None, ...]) -> Config:
        """The same with other windows, one for each layer."""
        changed = (replace(layer, window=window) for layer, window in zip(self.layers, windows, strict=True))
        return replace(self, layers=tuple(changed))


class Architecture(ABC):
    """An architecture under GGUF's name of it."""

    name: str
    hf_classes: tuple[str, ...]
    """Classes of transformers whose config.json is of a text model alone."""
    hf_multimodal_classes: tuple[str, ...]
    """Classes whose config.json has the text model's part under `text_config`."""
    matrices: Mapping[str, str]
    """Linear modules of a layer as transformers names them -> the roles of their weights: what LoRA may change."""
    control_ids: Mapping[str, int]
    """Roles of tokens, in GGUF's words, that no tokenizer file tells, and the ids that have them."""
    in_llama_cpp: bool
    """llama.cpp loads it."""
    own_output_in_llama_cpp: bool
    """llama.cpp loads it with an output matrix that is not the embedding."""
    is_encoder: bool = False
    """It makes embeddings and continues no text: its `Config` has an `Embedding`."""
    hf_tied: bool = True
    """Whether the embedding is the output matrix, too, where a config.json does not say."""

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def from_gguf(self, keys: GgufKeys) -> Config:
        """Read and check the metadata of a file. Raises ModelFormatError naming the key and its offset."""

    @abstractmethod
    def from_hf(self, fields: HfFields) -> Config:
        """Read and check the text model's part of a config.json. Raises CheckpointError naming the key."""

    @abstractmethod
    def metadata(self, config: Config) -> Metadata:
        """The keys of a GGUF file that `from_gguf` makes this config of, as llama.cpp's converter names them, and under
        `edge_gemma.` what these leave to be guessed."""

    @abstractmethod
    def guessed(self, config: Config) -> Config:
        """What llama.cpp takes this model for, which guesses some of it from the number of layers."""

    @abstractmethod
    def tensors(self, config: Config) -> list[TensorSpec]:
        """Every tensor, in the order of the files we write."""

    def unused_tensors(self, config: Config) -> list[TensorSpec]:
        """What files may hold that nothing reads."""
        return []

    def states(self, config: Config) -> list[AttentionState]:
        """What is kept of a sequence, of each layer that shares no other's."""
        own = [layer for layer in config.layers if layer.shared_with is None]
        return [AttentionState(layer.n_kv_heads, layer.head_dim, layer.window) for layer in own]

    @abstractmethod
    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the last layer's output, (T, D)."""

    def record_logits(self, p: Program, config: Config, weights: Weights, x: Buffer, logits: Buffer) -> None:
        """The last layer's output to logits, (T, V), written to `logits`: a norm, the vocabulary, a soft-cap if any."""
        h = p.rms_norm(x, weights.output_norm, config.rms_eps, out="h", consumers=(weights.output,))  # (T, D)
        p.matmul(h, weights.output, out=logits.name, rows=logits)  # (T, V)
        if config.final_softcap is not None:
            p.softcap(logits, config.final_softcap)

    def record_embedding(self, p: Program, config: Config, weights: Weights, pooled: Buffer, out: Buffer) -> None:
        """Pooled rows, (texts, D), through the dense layers to embeddings, (texts, width), where there are any."""
        raise NotImplementedError


def record(p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
    """Tokens to the last layer's output, (T, D), as the model's architecture says."""
    return config.model.record(p, config, weights, caches)


def record_logits(p: Program, config: Config, weights: Weights, x: Buffer, logits: Buffer) -> None:
    """The last layer's output to logits, (T, V), written to `logits`."""
    config.model.record_logits(p, config, weights, x, logits)
