"""Run Google's Gemma models on the CPU, straight from a memory-mapped GGUF file.

Importing this package loads neither Numba nor a model; opening a model does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `kernels/` and `quantize/` stand beside this folder, and an installed wheel has them inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "setup.py").is_file():
    __path__.append(str(_CHECKOUT))

from edge_gemma.errors import (  # noqa: E402  (after the path above, which other modules of this package need)
    CheckpointError,
    ContextOverflowError,
    EdgeGemmaError,
    ForkError,
    MemoryBudgetError,
    ModelChangedError,
    ModelFormatError,
    NumericalError,
)

if TYPE_CHECKING:
    from edge_gemma.gemma import Gemma

__all__ = [
    "CheckpointError",
    "ContextOverflowError",
    "EdgeGemmaError",
    "ForkError",
    "Gemma",
    "MemoryBudgetError",
    "ModelChangedError",
    "ModelFormatError",
    "NumericalError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "Gemma":
        from edge_gemma.gemma import Gemma

        return Gemma
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
