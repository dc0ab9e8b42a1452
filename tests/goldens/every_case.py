"""The cases of every family under one name, and what each module of cases does with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_gemma.models.registry import ARCHITECTURES
from tests.goldens import cases, gemma4_cases, llama_cases
from tests.goldens.cases import Case, Floats
from tests.goldens.gemma4_cases import Gemma4Case
from tests.goldens.llama_cases import LlamaCase

AnyCase = Case | Gemma4Case | LlamaCase

CASES: dict[str, AnyCase] = {**cases.CASES, **gemma4_cases.GEMMA4_CASES, **llama_cases.CASES}

CONTINUING = [name for name, model in ARCHITECTURES.items() if not model.is_encoder]
"""The architectures that continue texts; those of encoders have cases of their own, `embedding_cases.py`."""


def _module(case: AnyCase) -> Any:
    if isinstance(case, LlamaCase):
        return llama_cases
    return gemma4_cases if isinstance(case, Gemma4Case) else cases


def weights(case: AnyCase) -> dict[str, Floats]:
    """Every tensor of the checkpoint under its Hugging Face name."""
    drawn: dict[str, Floats] = _module(case).weights(case)
    return drawn


def config(case: AnyCase) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    document: dict[str, Any] = _module(case).config(case)
    return document


def write_checkpoint(case: AnyCase, folder: Path) -> None:
    """A folder as transformers saves it."""
    _module(case).write_checkpoint(case, folder)


def write_gguf(case: AnyCase, path: Path, format: str = "F32", *, dequantized: bool = False) -> None:
    """The same model as GGUF; `dequantized`: its float32 twin."""
    _module(case).write_gguf(case, path, format, dequantized=dequantized)
