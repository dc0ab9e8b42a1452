"""Ways of a decoding product to prefetch the weights that it reads next. All give the same bits; the clock may choose.

A product of one row, or of a few, reads a matrix tile by tile, and asks for a tile ahead while it reads this one. Into
which cache is best depends on the size of a tile beside the first-level cache, and on how many missing lines a core
keeps track of there. Zen 4 (32 KB, 24 lines; GB/s of one thread, Q4_0 in tiles of 16 rows): into the first level 12,
into the second 25 to 29, where a plain pass reads 30.

So matrices fall into classes, by whether two tiles fit the first-level cache, and by kind of block: what a 256-block
takes to unpack is spread differently over its bytes. Knows no Numba, no file and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edge_gemma.formats import FORMATS

from .. import caches
from ..layout import LANES, LINE


@dataclass(frozen=True)
class Prefetch:
    """Into which cache lines are asked for, 1, 2 or 3, how many 32-blocks later once more, and how far ahead.

    Where requests outrun memory some seem to be dropped: asking again, when most have come, gets these.
    lead: bytes at least, in whole tiles; at least the next one. The first level has no room for more.
    """

    level: int
    again: tuple[int, ...] = ()
    lead: int = 0


LEAD = 64 << 10
"""Into the second level. Tiles of short rows come too late if only the next one is asked for: GB/s on Zen 4, 1 and 2
threads, with the next tile and so far ahead: Q5_0 of 768 columns 16, 30 and 22, 39; Q4_0 of 2304 23, 43 and 27, 51.
128 KB do the same."""

STRATEGIES: dict[str, Prefetch | None] = {
    "none": None,
    "l1": Prefetch(1),
    "l1x4": Prefetch(1, (4, 12, 20)),
    "l2": Prefetch(2, (), LEAD),
    "l2x2": Prefetch(2, (12,), LEAD),
    "l2x3": Prefetch(2, (8, 16), LEAD),
    "l2x4": Prefetch(2, (4, 12, 20), LEAD),
    "l3x2": Prefetch(3, (12,), LEAD),
}
CONTENDERS = ("l1x4", "l2x3", "none")
"""What is tried beside the default where time matters: each has to be compiled."""
LARGE_L1 = 48 << 10
"""Bytes of a first-level cache for which asking into it was fastest for all sizes (Zen 5: 48 KB)."""


def class_of(format_name: str, row_bytes: int) -> str:
    """The class of a matrix: "near" if this tile, the next one and the activations fit the first-level cache, or "far";
    and "block" or "super" for 32-blocks and 256-blocks."""
    layout = FORMATS[format_name]
    activations = row_bytes // layout.nbytes * layout.block // 32 * LINE
    near = 2 * LANES * row_bytes + activations <= caches.sizes().l1
    return f"{'near' if near else 'far'} {'block' if layout.block == 32 else 'super'}"


def default(_matrix_class: str) -> str:
    """The strategy for a class by what is known of the CPU: so far the same for all.

    With 32 KB, rows are better asked for in the second level even where they fit the first (Zen 4, GB/s: one thread,
    rows of 680 B of Q8_0, 20 against 31; two with AVX2 31 against 39, and 25 against 33 with rows of 432 B of Q4_K).
    Asked for twice more: Q8_0 is 6 to 11% faster than with once more, Q4_0, Q4_K and Q6_K are within 2%. Three times
    more cost these 2 to 5% and bring Q8_0 another 2%.
    """
    if caches.sizes().l1 >= LARGE_L1:
        return "l1x4" if LANES >= 8 else "l1"
    return "l2x3"


@dataclass(frozen=True)
class Choices:
    """A strategy for each class that was measured; the others have their default."""

    measured: Mapping[str, str] = field(default_factory=dict)

    def of(self, matrix_class: str) -> str:
        """The strategy for a class."""
        return self.measured.get(matrix_class) or default(matrix_class)

    def for_matrix(self, format_name: str, row_bytes: int) -> str:
        """The strategy for products with a matrix."""
        return self.of(class_of(format_name, row_bytes))

    def describe(self, classes: Iterable[str]) -> dict[str, str]:
        """Class -> its strategy, and whether that is the default, for people."""
        return {c: f"{self.of(c)}, {'measured' if c in self.measured else 'default'}" for c in sorted(set(classes))}


DEFAULTS = Choices()
