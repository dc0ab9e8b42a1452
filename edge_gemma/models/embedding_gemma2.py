"""EmbeddingGemma 2: Gemma 4's layers with bidirectional attention, pooled, and a dense layer.

Its per-layer embeddings are projections alone, without a table. Knows no files, threads or instruction sets. T: rows of
a step, D: model width.
"""

from __future__ import annotations

from edge_gemma.gguf.values import Metadata, boolean, u32
from edge_gemma.graph.cache import LayerCache
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Buffer
from edge_gemma.models import gemma4_gguf, limits
from edge_gemma.models.architecture import Config
from edge_gemma.models.embedding import Embedding
from edge_gemma.models.embedding_gemma import PROMPTS, bidirectional, encoder_metadata, last_norm, read_pooling
from edge_gemma.models.gemma4 import Gemma4
from edge_gemma.models.gguf_keys import GgufKeys
from edge_gemma.models.tensor_table import TensorSpec
from edge_gemma.models.weights import Weights

NOT_THERE = {"rope_freqs", "per_layer_token_embd", "output"}
"""Of Gemma 4's tensors: all pairs rotate, per-layer embeddings have no table, and `output` is the dense layer."""


class EmbeddingGemma2(Gemma4):
    """Its text part. `sliding_window` of its files is the whole width: a token sees half of it to either side."""

    name = "gemma-embedding2"
    hf_classes = ()
    hf_multimodal_classes = ()
    is_encoder = True

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file."""
        config = gemma4_gguf.read(self, keys, causal=False)
        width = keys.width("embedding_length_out", limits.MAX_WIDTH)
        return bidirectional(config, Embedding(read_pooling(keys), width, ((config.d_model, width),), PROMPTS))

    def metadata(self, config: Config) -> Metadata:
        """As Gemma 4's; and what an encoder has."""
        assert config.embedding is not None
        return (
            super().metadata(config)
            | encoder_metadata(config, config.embedding)
            | {
                f"{self.name}.attention.causal": boolean(False),
                f"{self.name}.embedding_length_out": u32(config.embedding.width),
            }
        )

    def tensors(self, config: Config) -> list[TensorSpec]:
        """Gemma 4's but for a few, and the dense layer."""
        assert config.embedding is not None
        dense = TensorSpec("output", (config.embedding.width, config.d_model), "embedding_projection.weight")
        return [spec for spec in super().tensors(config) if spec.role not in NOT_THERE] + [dense]

    # ---- forward pass --------------------------------------------------------------------------------------------

    def record(self, p: Program, config: Config, weights: Weights, caches: list[LayerCache]) -> Buffer:
        """Tokens to the norm of the last layer's output, (T, D)."""
        return last_norm(p, config, weights, super().record(p, config, weights, caches))

    def record_embedding(self, p: Program, config: Config, weights: Weights, pooled: Buffer, out: Buffer) -> None:
        """Pooled rows, (texts, D), to embeddings, (texts, width)."""
        p.matmul(pooled, weights.output, out=out.name, rows=out)
