"""The offline quantizer: a Gemma checkpoint in, a GGUF out. Never imported by the runtime."""

if not __name__.startswith("edge_gemma."):
    raise ImportError("import this package as edge_gemma.quantize: the bare name belongs to other projects")

from typing import Any

__all__ = ["QuantizeReport", "quantize"]


def __getattr__(name: str) -> Any:
    """`quantize` and its report, imported when first used: they bring Numba with them."""
    if name in __all__:
        from . import convert

        return getattr(convert, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
