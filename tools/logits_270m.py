"""Logits of the real Gemma 3 270M for a short prompt: kept on one machine, compared on another.

python tools/logits_270m.py MODEL.gguf keep FILE.npz      the logits, to FILE.npz
python tools/logits_270m.py MODEL.gguf compare FILE.npz   fails if they are others, as far as they may be the same

Both also fail if the logits depend on the number of threads or on how the prompt is cut.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from numpy.typing import NDArray

from edge_gemma import Gemma
from edge_gemma.kernels.isa import current

PROMPT = [2, 818, 5279, 529, 7001, 563, 9079, 236761, 669, 5279, 529]
"""<bos>The capital of France is Paris. The capital of"""
WAYS = (1, 16), (2, 16), (2, 3), (1, 1)
"""Threads, and tokens of a step."""
FAR = 0.8
"""Most that a logit may differ where one side has no fused multiply-add; 0.66 was seen."""

Floats = NDArray[np.float32]


def logits(path: str, threads: int, chunk: int) -> Floats:
    """Of each position, (11, V)."""
    start = time.monotonic()
    with Gemma(path, context=32, threads=threads, chunk=16) as model:
        opened = time.monotonic()
        result: Floats = model.logits(PROMPT, chunk=chunk)
    print(
        f"{threads} threads, {chunk} rows: {opened - start:.0f} s to open, {time.monotonic() - opened:.0f} s",
        flush=True,
    )
    return result


def same_bits(a: Floats, b: Floats) -> bool:
    """Whether they are equal, a NaN too."""
    return np.array_equal(a.view(np.int32), b.view(np.int32))


def as_kept(ours: Floats, file: str) -> bool:
    """Whether another machine's logits in `file` are the same: to the bit, where both round products alike."""
    with np.load(file) as kept:
        theirs, fused = kept["logits"], current().fma and bool(kept["fma"])
    far, best = np.abs(ours - theirs).max(), (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
    print(f"same bits: {same_bits(ours, theirs)}, greatest difference {far:.3f}, same best tokens: {best}")
    return same_bits(ours, theirs) if fused else bool(best and far <= FAR)


def main() -> int:
    """0 if all is as it should be."""
    path, command, file = sys.argv[1:]
    print(f"instruction set: {current().name}", flush=True)
    ours, *others = (logits(path, *way) for way in WAYS)
    if not all(same_bits(ours, other) for other in others):
        print("the bits depend on threads or chunks")
        return 1
    if command == "keep":
        np.savez(file, logits=ours, fma=current().fma)
        return 0
    return 0 if as_kept(ours, file) else 1


if __name__ == "__main__":
    sys.exit(main())
