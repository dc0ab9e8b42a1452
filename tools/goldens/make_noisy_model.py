"""The real Gemma 3 270M with noise, as F32 GGUF: weights that lie on no format's grid.

    python -m tools.goldens.make_noisy_model MODEL.gguf F32.gguf OUT.gguf [SEED]

MODEL.gguf was published quantized (Q4_K_M): its values, widened in F32.gguf, lie on grids that a quantizer can find
again, which no unquantized checkpoint has. To each group of 32 values normal noise is added, as large as the error that
the group's format makes of normally distributed values: what quantizing took away, in size if not in kind. The model
that results is a little worse at texts; as a reference for its own quantized files it is as good as any.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize.presets import ERRORS

ROWS = 4096  # at a time


def main(model: Path, wide: Path, out: Path, seed: int = 0) -> None:
    shutil.copyfile(wide, out)
    rng = np.random.default_rng(seed)
    with GgufFile.open(model) as quantized, GgufFile.open(wide) as file:
        for name, tensor in file.tensors.items():
            stored = quantized.tensors[name].format
            if not stored.is_float:
                values = np.memmap(out, np.float32, "r+", tensor.offset, tensor.shape)
                relative = ERRORS[stored.name] ** 0.5
                for start in range(0, tensor.shape[0], ROWS):
                    groups = values[start : start + ROWS].reshape(-1, 32)
                    size = np.sqrt((groups.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
                    groups += (relative * size * rng.standard_normal(groups.shape)).astype(np.float32)
                values.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
