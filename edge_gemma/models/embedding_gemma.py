"""EmbeddingGemma: Gemma 3's layers with bidirectional attention, pooled, and dense layers. arXiv:2509.20354.

Knows no files, threads or instruction sets. T: rows of a step, D: model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edge_gemma.gguf.values import Metadata, u32
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.models import limits
from edge_gemma.models.architecture import Config
from edge_gemma.models.embedding import DENSE, Embedding
from edge_gemma.models.gemma import HF_3, Gemma
from edge_gemma.models.gguf_keys import GgufKeys
from edge_gemma.models.hf_fields import HfFields
from edge_gemma.models.layer_modules import PRE_AND_POST_NORMS, QK_NORMS
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.tensor_table import TensorSpec
from edge_gemma.models.weights import Weights

POOLING = {1: "mean", 3: "last"}
"""llama.cpp's numbers of the ways to pool that there are here."""
DENSE_LAYERS = ("dense_2", "dense_3")
"""llama.cpp's names of those behind the pooling."""
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
"""What stands before a text, by what the text is for."""


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingGemma(Gemma):
    """`sliding_window` of its files is the whole width: a token sees half of it to either side."""

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file."""
        config = super().from_gguf(keys)
        number = keys.metadata.u32(keys.key("pooling_type"), 1)
        if number not in POOLING:
            raise keys.error("pooling_type", f"{number} is not supported ({POOLING} are)")
        dense = _dense(keys, config.d_model)
        width = dense[-1][1] if dense else config.d_model
        return bidirectional(config, Embedding(POOLING[number], width, dense, PROMPTS))

    def from_hf(self, fields: HfFields) -> Config:
        """A config.json, in which `dense` has (inputs, outputs) of each dense layer, from its own config.json."""
        if not fields.get("use_bidirectional_attention"):
            raise fields.error("use_bidirectional_attention", "is not set: this is no EmbeddingGemma")
        causal = HfFields(fields.values | {"use_bidirectional_attention": False}, fields.defaults, fields.where)
        config = super().from_hf(causal)
        dense = tuple((inputs, outputs) for inputs, outputs in fields.get(DENSE) or ())
        return bidirectional(config, Embedding("mean", dense[-1][1] if dense else config.d_model, dense, PROMPTS))

    def metadata(self, config: Config) -> Metadata:
        """As Gemma 3's; and the dense layers."""
        assert config.embedding is not None
        keys = super().metadata(config)
        if local := config.of_kind(local=True):
            keys[f"{self.name}.attention.sliding_window"] = u32(2 * local.ahead)
        numbers = {name: number for number, name in POOLING.items()}
        keys[f"{self.name}.pooling_type"] = u32(numbers[config.embedding.pooling])
        for name, (inputs, outputs) in zip(DENSE_LAYERS, config.embedding.dense, strict=False):
            keys |= {f"{self.name}.{name}_feat_in": u32(inputs), f"{self.name}.{name}_feat_out": u32(outputs)}
        return keys

    def guessed(self, config: Config) -> Config:
        """As of Gemma 3."""
        return bidirectional(super().guessed(config), config.embedding)

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Gemma 3's, and the dense layers."""
        assert config.embedding is not None
        shapes = [(outputs, inputs) for inputs, outputs in config.embedding.dense]
        dense = [
            TensorSpec(name, shape, f"{i}_Dense.linear.weight")
            for i, name, shape in zip((2, 3), DENSE_LAYERS, shapes, strict=False)
        ]
        return [spec for spec in super().tensors(config) if spec.role != "output"] + dense

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the norm of the last layer's output, (T, D)."""
        x = super().record(p, config, weights, caches)
        return p.rms_norm(x, weights.output_norm, config.rms_eps, out="last norm", consumers=())

    def record_embedding(self, p: Program, config: Config, weights: Weights, pooled: Buffer, out: Buffer) -> None:
        """Pooled rows, (texts, D), to embeddings, (texts, width): two products, without bias or anything between."""
        hidden = p.matmul(pooled, weights.outside.dense_2, out="dense")
        p.matmul(hidden, weights.outside.dense_3, out=out.name, rows=out)


def _dense(keys: GgufKeys, width: int) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of the layers that the file names, each of which takes what the one before gives."""
    if not any(keys.key(f"{name}_feat_{end}") in keys.metadata for name in DENSE_LAYERS for end in ("in", "out")):
        return ()
    layers = []
    for name in DENSE_LAYERS:
        inputs, outputs = (keys.width(f"{name}_feat_{end}", limits.MAX_WIDTH) for end in ("in", "out"))
        if inputs != width:
            raise keys.error(f"{name}_feat_in", f"{inputs} is not the {width} values that it is given")
        layers.append((inputs, outputs))
        width = outputs
    return tuple(layers)


def bidirectional(config: Config, embedding: Embedding | None) -> Config:
    """Local layers see half of what has been their window to either side of a token, global ones all."""
    return replace(config, layers=tuple(map(_bidirectional_layer, config.layers)), embedding=embedding)


def _bidirectional_layer(layer: LayerConfig) -> LayerConfig:
    if layer.window is None:
        return replace(layer, ahead=limits.MAX_CONTEXT)
    return replace(layer, window=layer.window // 2 + 1, ahead=layer.window // 2)


FAMILIES = (
    EmbeddingGemma(
        name="gemma-embedding",
        hf_classes=("Gemma3TextModel",),
        hf_defaults=HF_3,
        norms=PRE_AND_POST_NORMS | QK_NORMS,
        period=6,
        rope_base=1e6,
        rope_base_local=1e4,
        default_eps=1e-6,
    ),
)
