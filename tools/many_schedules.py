"""Run many random schedules of the engine on a small model, and report each that is not what its requests are alone.

    python -m tools.many_schedules 10000 [--from SEED] [--case gemma2-2b]

A seed that differs is printed, and is run again by `--from SEED` with 1. The exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["EDGE_GEMMA_TUNE"] = "off"  # measuring takes seconds, and no result depends on it

from tests.engine.schedules import Alone, differences
from tests.goldens.cases import CASES, write_gguf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    parser.add_argument("--case", default="gemma2-2b", choices=CASES)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_gguf(CASES[given.case], path)
        return run(path, range(given.first, given.first + given.count))


def run(path: Path, seeds: range) -> int:
    alone, wrong, start = Alone(path), 0, time.monotonic()
    for done, seed in enumerate(seeds, 1):
        if found := differences(path, seed, alone):
            wrong += 1
            print(f"seed {seed}:", *found, sep="\n  ", flush=True)
        if done % 100 == 0:
            alone.close()
            alone = Alone(path)  # with empty caches
            print(f"{done} schedules, {wrong} differ, {time.monotonic() - start:.0f} s", flush=True)
    alone.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
