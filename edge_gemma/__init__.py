"""Run Google's Gemma models on the CPU, straight from a memory-mapped GGUF file.

Importing this package loads neither Numba nor a model; opening a model does.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `kernels/` and `quantize/` stand beside this folder, and an installed wheel has them inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "setup.py").is_file():
    __path__.append(str(_CHECKOUT))

from edge_gemma.errors import (  # noqa: E402  (after the path above, which other modules of this package need)
    Cancelled,
    CheckpointError,
    ContextOverflowError,
    EdgeGemmaError,
    ForkError,
    MemoryBudgetError,
    ModelChangedError,
    ModelFormatError,
    NumericalError,
    OutputError,
    SessionError,
    ThreadError,
)

if TYPE_CHECKING:
    from edge_gemma.engine.answer import Timings, Usage
    from edge_gemma.engine.loop import Stats
    from edge_gemma.engine.memory_plan import plan_memory
    from edge_gemma.engine.sampler import SamplingParams
    from edge_gemma.gemma import Gemma
    from edge_gemma.options import AnswerOptions, SamplingOptions
    from edge_gemma.streams import AsyncStream, Completion, Stream
    from edge_gemma.token_sequence import TokenSequence

__all__ = [
    "AnswerOptions",
    "AsyncStream",
    "Cancelled",
    "CheckpointError",
    "Completion",
    "ContextOverflowError",
    "EdgeGemmaError",
    "ForkError",
    "Gemma",
    "MemoryBudgetError",
    "ModelChangedError",
    "ModelFormatError",
    "NumericalError",
    "OutputError",
    "SamplingOptions",
    "SamplingParams",
    "SessionError",
    "Stats",
    "Stream",
    "ThreadError",
    "Timings",
    "TokenSequence",
    "Usage",
    "__version__",
    "plan_memory",
]

_MODULES = {
    "AnswerOptions": "options",
    "AsyncStream": "streams",
    "Completion": "streams",
    "Gemma": "gemma",
    "SamplingOptions": "options",
    "SamplingParams": "engine.sampler",
    "Stats": "engine.loop",
    "Stream": "streams",
    "Timings": "engine.answer",
    "TokenSequence": "token_sequence",
    "Usage": "engine.answer",
    "plan_memory": "engine.memory_plan",
}
"""Where names are that are imported when they are asked for."""

if not TYPE_CHECKING:  # to a type checker, any name would be there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
