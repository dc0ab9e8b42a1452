"""The machine's limits as a worker: a buffer that is kept, and passes over it whenever asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from serve import serve

from bench import limits


class Machine:
    """One buffer. Results are those of `bench/limits.py`."""

    def open(self, size: int, threads: int) -> None:
        self._memory, self._threads = np.ones(size, np.uint8), threads

    def measure(self, seconds: float) -> dict[str, Any]:
        result = limits.measure(self._memory, self._threads, seconds)
        return {"read": result["read_bytes_per_s"], "dot": result["dot_macs_per_s"]}


if __name__ == "__main__":
    machine = Machine()
    serve({"open": machine.open, "measure": machine.measure})
