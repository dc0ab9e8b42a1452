"""`Gemma4Config`: the configuration of Gemma 4 (text), whose layers differ in all but the width. Knows no tensors.

Local and global layers have heads, rotation and window of their own; the last layers may share keys and values of
earlier ones and be wider. The readers are `gemma4_gguf.py` and `gemma4_hf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_gemma.gguf.values import Metadata
from edge_gemma.models import gemma4_gguf, gemma4_hf
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.gemma4_metadata import gemma4_metadata
from edge_gemma.models.gguf_keys import GgufKeys
from edge_gemma.models.hf_fields import HfFields


class Gemma4Config(Architecture):
    """What files say of Gemma 4."""

    name = "gemma4"
    hf_classes = ("Gemma4ForCausalLM",)
    hf_multimodal_classes = ("Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration")
    control_ids: Mapping[str, int] = {}
    in_llama_cpp = True
    own_output_in_llama_cpp = True

    def from_gguf(self, keys: GgufKeys) -> Config:
        """The metadata of a GGUF file."""
        return gemma4_gguf.read(self, keys)

    def from_hf(self, fields: HfFields) -> Config:
        """The text model's part of a config.json."""
        return gemma4_hf.read(self, fields)

    def metadata(self, config: Config) -> Metadata:
        """As llama.cpp's converter writes it; nothing is left to be guessed."""
        return gemma4_metadata(config)

    def guessed(self, config: Config) -> Config:
        """Whose keys and values are shared: llama.cpp takes the last two layers that have any, a local and a global."""
        own = sum(layer.shared_with is None for layer in config.layers)
        layers = (
            layer if layer.shared_with is None else replace(layer, shared_with=own - (1 if layer.window is None else 2))
            for layer in config.layers
        )
        return replace(config, attn_scale=1.0, layers=tuple(layers))
