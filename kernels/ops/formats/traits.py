"""What a block format is to the loops: its facts, and four operations that compiled code picks by the format's type.

Knows no format. What the operations are given and owe is said in the package's docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import (
    models,
    overload,
    register_model,
    typeof_impl,
)

from edge_gemma.formats import BlockFormat

from ...layout import ZEROS
from ...simd.decorators import INLINED


@dataclass(frozen=True, eq=False)
class IntFormat:
    """Facts of a quantized format.

    `top` is the largest byte that `weights` gives; `group` neighbouring 32-blocks share the bytes they are read from.
    """

    layout: BlockFormat
    top: int
    weights: Callable[..., Any]
    scale: Callable[..., Any]
    subscales: Callable[..., Any] | None = None
    minimum: Callable[..., Any] | None = None
    group: int = 1

    @property
    def name(self) -> str:
        """As in GGUF."""
        return self.layout.name

    @property
    def zero(self) -> int:
        """What is subtracted from the unsigned weights."""
        return ZEROS.get(self.name, 0)

    @property
    def blocks(self) -> int:
        """32-blocks in one block of the file."""
        return self.layout.block // 32

    @property
    def subs(self) -> int:
        """Parts of a 32-block with an integer scale of their own: 1 means none, or 2."""
        return 1 if self.subscales is None else 2

    @property
    def mins(self) -> bool:
        """Whether blocks have a minimum."""
        return self.minimum is not None

    @property
    def wide(self) -> bool:
        """Whether weights take all 8 bits; they come plus WIDE_ZERO, which may be 0, and are signed then."""
        return self.top == 255


class _FormatType(types.Dummy):
    def __init__(self, fmt: IntFormat) -> None:
        super().__init__(name=f"Format({fmt.name})")
        self.format = fmt


register_model(_FormatType)(models.OpaqueModel)


@typeof_impl.register(IntFormat)
def _typeof_format(value: IntFormat, _context: Any) -> _FormatType:
    return _FormatType(value)


def weights(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """8 vectors of unsigned bytes; see the package's docstring. Compiled code only."""
    raise NotImplementedError


def scale(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the package's docstring. Compiled code only."""
    raise NotImplementedError


def subscales(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the package's docstring. Compiled code only."""
    raise NotImplementedError


def minimum(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
    """See the package's docstring. Compiled code only."""
    raise NotImplementedError


def _dispatch(operation: Callable[..., Any], trait: str) -> None:
    @overload(operation, inline="never", jit_options=INLINED)
    def _resolve(fmt: Any, at: Any, stride: Any, i: Any) -> Any:
        return getattr(fmt.format, trait)


_dispatch(weights, "weights")
_dispatch(scale, "scale")
_dispatch(subscales, "subscales")
_dispatch(minimum, "minimum")
