"""The machine's limits as a worker: a buffer that is kept, and passes over it whenever asked."""

from __future__ import annotations

import numpy as np
from serve import serve

from bench import limits


class Machine:
    """One buffer. Results are those of `bench/limits.py`."""

    def open(self, size: int, threads: int) -> None:
        self._memory, self._threads = np.ones(size, np.uint8), threads

    def measure(self, seconds: float) -> dict[str, float]:
        return limits.measure(self._memory, self._threads, seconds)


if __name__ == "__main__":
    serve(Machine())
