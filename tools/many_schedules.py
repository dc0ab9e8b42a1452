"""Run many random schedules of the engine, and report each that is not what its requests are alone.

    python -m tools.many_schedules 10000                        # of a small model on real kernels: ten a second
    python -m tools.many_schedules 10000 --case gemma3-4b       # of another one
    python -m tools.many_schedules 10000 --without-kernels      # of the engine alone: a hundred a second

The result is one line on stdout, also after Ctrl-C; it says with which --from the next schedules begin. A seed that
differs is told on stderr, and is run again by `1 --from SEED`. The exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["EDGE_GEMMA_TUNE"] = "off"  # measuring takes seconds, and no result depends on it

from tests.engine import fake_schedules, schedules
from tests.goldens.cases import CASES, write_gguf

REOPENED = 100
"""Schedules after which the model that answers alone is opened anew, with empty caches."""

Differences = Callable[[int], list[str]]
"""What is wrong with the schedule of a seed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED")
    parser.add_argument("--case", default="gemma2-2b", choices=CASES)
    parser.add_argument("--without-kernels", action="store_true")
    given = parser.parse_args()
    with without_kernels() if given.without_kernels else on_kernels(given.case) as differences:
        return run(differences, given.first, given.count)


def run(differences: Differences, first: int, count: int) -> int:
    ran, wrong, start = 0, [], time.monotonic()
    try:
        for seed in range(first, first + count):
            if found := differences(seed):
                wrong.append(seed)
                print(f"seed {seed}:", *found, sep="\n  ", file=sys.stderr, flush=True)
            ran += 1
    except KeyboardInterrupt:
        pass
    verdict = f"{len(wrong)} differ: {wrong}" if wrong else "none differs"
    seconds = time.monotonic() - start
    print(f"{ran} schedules from seed {first} on, {seconds:.0f} s, {verdict}; the next is --from {first + ran}")
    return int(bool(wrong))


@contextmanager
def without_kernels() -> Iterator[Differences]:
    yield fake_schedules.differences


@contextmanager
def on_kernels(case: str) -> Iterator[Differences]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_gguf(CASES[case], path)
        alone, ran = schedules.Alone(path), 0

        def differences(seed: int) -> list[str]:
            nonlocal alone, ran
            if ran and ran % REOPENED == 0:
                alone.close()
                alone = schedules.Alone(path)
            ran += 1
            return schedules.differences(path, seed, alone)

        yield differences
        alone.close()


if __name__ == "__main__":
    sys.exit(main())
