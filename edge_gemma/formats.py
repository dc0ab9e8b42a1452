"""The block formats of weight tensors, as data: names, GGUF type numbers, sizes.

Knows no bytes inside a block (`kernels/ops/formats/`, `kernels/reference/formats.py`), no tensor and no file.
Source: the type table of the GGUF specification and ggml's block structs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockFormat:
    """`block` consecutive values of a row take `nbytes` bytes in the file."""

    name: str
    type_id: int
    block: int
    nbytes: int

    @property
    def is_float(self) -> bool:
        """Whether values are stored one by one, as floats."""
        return self.block == 1

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.nbytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values. Raises ValueError unless the block divides the row."""
        if columns % self.block:
            raise ValueError(f"a row of {columns} values is no multiple of {self.name}'s block of {self.block}")
        return columns // self.block * self.nbytes


FORMATS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("F32", 0, 1, 4),
        BlockFormat("F16", 1, 1, 2),
        BlockFormat("BF16", 30, 1, 2),
        BlockFormat("Q4_0", 2, 32, 18),
        BlockFormat("Q4_1", 3, 32, 20),
        BlockFormat("Q5_0", 6, 32, 22),
        BlockFormat("Q5_1", 7, 32, 24),
        BlockFormat("Q8_0", 8, 32, 34),
        BlockFormat("Q2_K", 10, 256, 84),
        BlockFormat("Q3_K", 11, 256, 110),
        BlockFormat("Q4_K", 12, 256, 144),
        BlockFormat("Q5_K", 13, 256, 176),
        BlockFormat("Q6_K", 14, 256, 210),
        BlockFormat("IQ4_NL", 20, 32, 18),
        BlockFormat("IQ4_XS", 23, 256, 136),
        BlockFormat("IQ3_XXS", 18, 256, 98),
        BlockFormat("IQ3_S", 21, 256, 110),
        BlockFormat("IQ2_XXS", 16, 256, 66),
        BlockFormat("IQ2_XS", 17, 256, 74),
        BlockFormat("IQ2_S", 22, 256, 82),
        BlockFormat("IQ1_S", 19, 256, 50),
        BlockFormat("IQ1_M", 29, 256, 56),
        BlockFormat("MXFP4", 39, 32, 17),
    )
}
"""The formats the runtime executes, by name."""

BY_TYPE_ID: dict[int, BlockFormat] = {f.type_id: f for f in FORMATS.values()}
