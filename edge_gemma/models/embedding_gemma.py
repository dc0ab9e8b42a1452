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

POOLING = {"mean": 1, "last": 3}
"""The ways to pool that there are here -> llama.cpp's numbers of them."""
DENSE_LAYERS = ("dense_2", "dense_3")
"""llama.cpp's names of those behind the pooling."""
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}
"""What stands before a text, by what the text is for."""


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingGemma(Gemma):
    """`sliding_window` of its files is the whole width: a token sees half of it to either side."""

    is_encoder = True

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file."""
        config = super().from_gguf(keys)
        dense = _dense(keys, config.d_model)
        width = dense[-1][1] if dense else config.d_model
        return bidirectional(config, Embedding(read_pooling(keys), width, dense, PROMPTS))

    def from_hf(self, fields: HfFields) -> Config:
        """A config.json, in which `dense` has (inputs, outputs) of each dense layer, from its own config.json."""
        if not fields.get("use_bidirectional_attention"):
            raise fields.error("use_bidirectional_attention", "is not set: this is no EmbeddingGemma")
        causal = HfFields(fields.values | {"use_bidirectional_attention": False}, fields.defaults, fields.where)
        config = super().from_hf(causal)
        dense = tuple(fields.get(DENSE) or ())
        if len(dense) not in (0, len(DENSE_LAYERS)):
            raise fields.error(DENSE, f"layers are {len(dense)} in modules.json; {len(DENSE_LAYERS)} are run, or none")
        return bidirectional(config, Embedding("mean", dense[-1][1] if dense else config.d_model, dense, PROMPTS))

    def metadata(self, config: Config) -> Metadata:
        """As Gemma 3's; and the dense layers."""
        assert config.embedding is not None
        keys = super().metadata(config) | encoder_metadata(config, config.embedding)
        for name, (inputs, outputs) in zip(DENSE_LAYERS, config.embedding.dense, strict=False):
            keys |= {f"{self.name}.{name}_feat_in": u32(inputs), f"{self.name}.{name}_feat_out": u32(outputs)}
        return keys

    def guessed(self, config: Config) -> Config:
        """As of Gemma 3."""
        config = super().guessed(config)
        return replace(config, layers=tuple(map(seeing_ahead, config.layers)))

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
        return last_norm(p, config, weights, super().record(p, config, weights, caches))

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


# ---- what all encoders share -------------------------------------------------------------------------------------


def read_pooling(keys: GgufKeys) -> str:
    """How rows are pooled: their mean where the file does not say."""
    number = keys.metadata.u32(keys.key("pooling_type"), POOLING["mean"])
    names = [name for name, known in POOLING.items() if known == number]
    if not names:
        raise keys.error("pooling_type", f"{number} is not supported ({POOLING} are)")
    return names[0]


def encoder_metadata(config: Config, embedding: Embedding) -> Metadata:
    """The window on both sides together, and the pooling."""
    keys = {f"{config.architecture}.pooling_type": u32(POOLING[embedding.pooling])}
    if local := config.of_kind(local=True):
        keys[f"{config.architecture}.attention.sliding_window"] = u32(2 * local.ahead)
    return keys


def bidirectional(config: Config, embedding: Embedding) -> Config:
    """Local layers see half of what has been their window to either side of a token, global ones all."""
    halves = tuple(None if layer.window is None else layer.window // 2 + 1 for layer in config.layers)
    layers = map(seeing_ahead, config.with_windows(halves).layers)
    return replace(config, layers=tuple(layers), embedding=embedding)


def seeing_ahead(layer: LayerConfig) -> LayerConfig:
    """As many keys behind a token are visible as before it."""
    return replace(layer, ahead=limits.MAX_CONTEXT if layer.window is None else layer.window - 1)


def last_norm(p: Program, config: Config, weights: Weights, x: Buffer) -> Buffer:
    """The rows that are pooled, (T, D)."""
    return p.rms_norm(x, weights.output_norm, config.rms_eps, out="last norm", consumers=())


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
