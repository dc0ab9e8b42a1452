"""The cases of every family under one name, and what each module of cases does with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.goldens import cases, llama_cases
from tests.goldens.cases import Case, Floats
from tests.goldens.llama_cases import LlamaCase

AnyCase = Case | LlamaCase

CASES: dict[str, AnyCase] = {**cases.CASES, **llama_cases.CASES}


def weights(case: AnyCase) -> dict[str, Floats]:
    """Every tensor of the checkpoint under its Hugging Face name."""
    return llama_cases.weights(case) if isinstance(case, LlamaCase) else cases.weights(case)


def config(case: AnyCase) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    return llama_cases.config(case) if isinstance(case, LlamaCase) else cases.config(case)


def write_checkpoint(case: AnyCase, folder: Path) -> None:
    """A folder as transformers saves it."""
    if isinstance(case, LlamaCase):
        llama_cases.write_checkpoint(case, folder)
    else:
        cases.write_checkpoint(case, folder)


def write_gguf(case: AnyCase, path: Path, format: str = "F32", *, dequantized: bool = False) -> None:
    """The same model as GGUF; `dequantized`: its float32 twin."""
    if isinstance(case, LlamaCase):
        llama_cases.write_gguf(case, path, format, dequantized=dequantized)
    else:
        cases.write_gguf(case, path, format, dequantized=dequantized)
