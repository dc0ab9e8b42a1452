"""The architectures there are, by GGUF's name and by transformers' classes."""

from __future__ import annotations

from edge_gemma.gguf.file import GgufFile
from edge_gemma.models import embedding_gemma, embedding_gemma2, gemma, gemma4, llama
from edge_gemma.models.architecture import Architecture, Config
from edge_gemma.models.gguf_keys import GgufKeys

_MODELS: tuple[Architecture, ...] = (
    *gemma.FAMILIES,
    gemma4.Gemma4(),
    *embedding_gemma.FAMILIES,
    embedding_gemma2.EmbeddingGemma2(),
    llama.Llama(),
)
ARCHITECTURES: dict[str, Architecture] = {model.name: model for model in _MODELS}


def read_config(file: GgufFile) -> Config:
    """Read and check the metadata of `file`. Raises ModelFormatError naming the key and its offset."""
    name = file.metadata.string("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise file.metadata.error("general.architecture", f"{name!r} is not supported ({known} are)")
    return ARCHITECTURES[name].from_gguf(GgufKeys(file.metadata, name, file.tensors))
