"""A process that compiles kernels into a cache folder. Started by `workers`; knows nothing of who asks.

Arguments: the folder, and the cache key that it is for. Each line of the input names a kernel, `module name
[strategy]`; each is answered by a line when its file is there. It ends when the input does, so also when whoever
started it is gone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..operations import Kernel
from .cache_file import write_object
from .cache_key import cache_key
from .compile import compile_kernel
from .library import file_name, symbol_of
from .workers import DONE


def main(folder: Path, key: str) -> str | None:
    """Serve standard input. Returns what is wrong, if this process would compile something else than was asked for."""
    if cache_key() != key:
        return f"the cache key here is {cache_key()}"
    for line in sys.stdin:
        kernel = Kernel(*line.split())
        write_object(folder / file_name(kernel), compile_kernel(kernel, symbol_of(kernel)))
        sys.stdout.write(DONE)
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
