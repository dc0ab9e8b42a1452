"""What the machine can do: read bandwidth, and products of bytes per second. The figures others are held against.

    python bench/limits.py -t 2 --bytes 1600000000

Bandwidth is a pass over a buffer, each thread its own part, in vectors of the widest kind: the fastest of a few orders,
the kernels' own among them, so that these cannot be faster than the limit. The dot-product peak
is the kernels' own instruction on registers, twelve independent chains a thread; where a product is several
instructions (AVX2), it is the kernels' cheapest sum of products, that of 4-bit weights.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba import njit
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edge_gemma.kernels.isa import current
from edge_gemma.kernels.simd.types import ISA
from edge_gemma.kernels.simd.vocabulary import LANES, dot4, dots, load_int, prefetches, splat_int, sum_lanes_int

llvm.initialize_native_asmparser()  # prefetches are lines of assembly

CHAINS = 12
LEAST_READ = 1 << 30
"""Bytes of a repetition: starting threads costs 0.1 ms, which must not show."""
_VECTOR = 4 * LANES
_ROW, _TILE = 5120, 16 * 5120
"""Bytes of a row and of 16, as `_read_rows` has them."""
_ask = prefetches(*(offset for line in range(0, 1024, 64) for offset in (line, line - 4096)), level=2)
_sum_of_eight = dots(15)


@njit(nogil=True)
def _read(address: int, size: int, apart: int) -> int:
    """Sum of all words of four streams of loads, which hide the addition's latency: vectors side by side (`apart`: one
    vector), or quarters of the memory."""
    a = b = c = d = splat_int(0)
    step = 4 * _VECTOR if apart == _VECTOR else _VECTOR
    end = address + (size if apart == _VECTOR else apart) - step + 1
    for at in range(address, end, step):
        a = a + load_int(at)
        b = b + load_int(at + apart)
        c = c + load_int(at + 2 * apart)
        d = d + load_int(at + 3 * apart)
    return sum_lanes_int((a + b) + (c + d))


@njit(nogil=True)
def _read_rows(address: int, size: int) -> int:
    """The kernels' own order: 16 rows at a time, 64 bytes of each by turns, the next 16 asked for meanwhile."""
    a = b = c = d = splat_int(0)
    for tile in range(address, address + size - 2 * _TILE + 1, _TILE):
        for line in range(0, _ROW, 64):
            _ask(tile + _TILE + 16 * line)
            for row in range(tile + line, tile + line + _TILE, 4 * _ROW):
                for at in range(row, row + 64, _VECTOR):
                    a = a + load_int(at)
                    b = b + load_int(at + _ROW)
                    c = c + load_int(at + 2 * _ROW)
                    d = d + load_int(at + 3 * _ROW)
    return sum_lanes_int((a + b) + (c + d))


@njit(nogil=True)
def _multiply(rounds: int, inputs: int) -> int:
    """rounds x CHAINS dependent `dot4`, each with inputs of its own, so that no two share a part of the work."""
    u, one, small, v = splat_int(0x01020304), splat_int(1), splat_int(0x0F0F0F0F), _VECTOR
    a = b = c = d = e = f = g = h = i = j = k = m = splat_int(0)
    for _ in range(rounds):
        a, b = dot4(a, u, load_int(inputs)), dot4(b, u, load_int(inputs + v))
        c, d = dot4(c, u, load_int(inputs + 2 * v)), dot4(d, u, load_int(inputs + 3 * v))
        e, f = dot4(e, u, load_int(inputs + 4 * v)), dot4(f, u, load_int(inputs + 5 * v))
        g, h = dot4(g, u, load_int(inputs + 6 * v)), dot4(h, u, load_int(inputs + 7 * v))
        i, j = dot4(i, u, load_int(inputs + 8 * v)), dot4(j, u, load_int(inputs + 9 * v))
        k, m = dot4(k, u, load_int(inputs + 10 * v)), dot4(m, u, load_int(inputs + 11 * v))
        u = (u + one) & small  # where a product is several instructions, all of them have to be done each time
    total = ((a + b) + (c + d)) + ((e + f) + (g + h)) + ((i + j) + (k + m))
    return sum_lanes_int(total)


@njit(nogil=True)
def _multiply_nibbles(rounds: int, inputs: int) -> int:
    """rounds x CHAINS `dot4`, as sums of eight, which 16 bits hold; each of other inputs, so that none can be saved."""
    small = splat_int(0x0F0F0F0F)
    u, v = load_int(inputs) & small, load_int(inputs + _VECTOR) & small
    weights = (u, v, u, v, u, v, u, v)
    a = b = c = splat_int(0)
    for i in range(rounds * CHAINS // 24):
        x = inputs + 4 * (i & 15)
        a = _sum_of_eight(a, weights, x)
        b = _sum_of_eight(b, weights, x + 32)
        c = _sum_of_eight(c, weights, x + 64)
    return sum_lanes_int(a + b + c)


def _together(functions: Sequence[Callable[[], Any]]) -> float:
    """Seconds until all, each on a thread of its own, are done."""
    threads = [threading.Thread(target=f) for f in functions]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


PATTERNS: dict[str, Any] = {
    "one stream": lambda address, size: _read(address, size, _VECTOR),
    "four streams": lambda address, size: _read(address, size, size // 4 // 64 * 64),
    "rows": _read_rows,
}
"""Orders of reading memory once. Which is fastest depends on the CPU, and on how busy the memory is."""


def read_bandwidth(memory: NDArray[np.uint8], threads: int, seconds: float) -> dict[str, float]:
    """Pattern -> bytes per second, medians of repeated passes, by turns, so long together; a small buffer is passed
    over several times in one."""
    part = memory.size // threads // 4096 * 4096
    passes = -(-LEAST_READ // memory.size)

    def read(pattern: Callable[[int, int], Any], address: int) -> None:
        for _ in range(passes):
            pattern(address, part)

    addresses = [memory.ctypes.data + i * part for i in range(threads)]
    jobs = {name: [partial(read, pattern, address) for address in addresses] for name, pattern in PATTERNS.items()}
    times = _repeated(list(jobs.values()), seconds)
    return {name: part * passes * threads / median(of) for name, of in zip(jobs, times, strict=True)}


def dot_peak(threads: int, seconds: float, rounds: int = 10_000_000) -> float:
    """Multiply-adds of bytes per second, the median of repetitions for so long."""
    inputs = np.random.default_rng(0).integers(-127, 128, CHAINS * _VECTOR, dtype=np.int8)
    multiply = _multiply_nibbles if ISA.dot == "vpmaddubsw" else _multiply
    multiply(2, inputs.ctypes.data)
    (times,) = _repeated([[partial(multiply, rounds, inputs.ctypes.data)] * threads], seconds)
    return float(rounds * CHAINS * 4 * LANES * threads / median(times))


def _repeated(jobs: Sequence[Sequence[Callable[[], Any]]], seconds: float) -> list[list[float]]:
    """The times of each job, by turns after a first one, until `seconds` have passed."""
    times: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        _together(job)
    end = time.perf_counter() + seconds
    while not times[-1] or time.perf_counter() < end:
        for job, of in zip(jobs, times, strict=True):
            of.append(_together(job))
    return times


def measure(memory: NDArray[np.uint8], threads: int, seconds: float = 1.0) -> dict[str, float]:
    """Bytes read in the best of the patterns, and multiply-adds, per second; each of the two takes so many seconds."""
    return {
        "read": max(read_bandwidth(memory, threads, seconds).values()),
        "dot": dot_peak(threads, seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure read bandwidth and dot-product peak.")
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("--bytes", dest="size", type=int, default=1 << 30)
    args = parser.parse_args()
    memory = np.ones(args.size, np.uint8)
    patterns, dot = read_bandwidth(memory, args.threads, 1.0), dot_peak(args.threads, 1.0)
    told = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in patterns.items())
    print(f"{current().name}, {args.threads} threads: read {told} GB/s, dot product {dot / 1e9:.0f} GMAC/s")


if __name__ == "__main__":
    main()
