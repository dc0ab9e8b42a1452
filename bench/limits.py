"""What the machine can do: read bandwidth, and products of bytes per second. The figures others are held against.

    python bench/limits.py -t 2 --bytes 1600000000 --json

Bandwidth is a pass over a buffer, each thread its own part, in vectors of the widest kind: the fastest of a few orders,
the kernels' own among them, so that these cannot be faster than the limit. The dot-product peak
is the kernels' own instruction on registers, twelve independent chains a thread; where a product is several
instructions (AVX2), it is the kernels' cheapest sum of products, that of 4-bit weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
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


def _together(functions: list[Callable[[], Any]]) -> float:
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


def read_bandwidth(memory: NDArray[np.uint8], threads: int, seconds: float) -> dict[str, list[float]]:
    """Pattern -> bytes per second of repeated passes, by turns, so long together; a small buffer is passed over several
    times in one."""
    part = memory.size // threads // 4096 * 4096
    passes = -(-LEAST_READ // memory.size)

    def reader(pattern: Callable[[int, int], Any], address: int) -> Callable[[], None]:
        def read() -> None:
            for _ in range(passes):
                pattern(address, part)

        return read

    jobs = {
        name: [reader(pattern, memory.ctypes.data + i * part) for i in range(threads)]
        for name, pattern in PATTERNS.items()
    }
    for job in jobs.values():
        _together(job)
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not rates["rows"]:
        for name, job in jobs.items():
            rates[name].append(part * passes * threads / _together(job))
    return rates


def dot_peak(threads: int, seconds: float, rounds: int = 10_000_000) -> list[float]:
    """Multiply-adds of bytes per second of each repetition, for so long."""
    products = rounds * CHAINS * 4 * LANES * threads
    inputs = np.random.default_rng(0).integers(-127, 128, CHAINS * _VECTOR, dtype=np.int8)
    multiply = _multiply_nibbles if ISA.dot == "vpmaddubsw" else _multiply
    multiply(2, inputs.ctypes.data)
    return [products / taken for taken in _repeated([partial(multiply, rounds, inputs.ctypes.data)] * threads, seconds)]


def _repeated(jobs: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The time of each repetition after a first one, until `seconds` have passed."""
    _together(jobs)
    end, times = time.perf_counter() + seconds, [_together(jobs)]
    while time.perf_counter() < end:
        times.append(_together(jobs))
    return times


def measure(memory: NDArray[np.uint8], threads: int, seconds: float = 1.0) -> dict[str, Any]:
    """Medians, with the repetitions they are of; each of the two takes so many seconds."""
    patterns, peak = read_bandwidth(memory, threads, seconds), dot_peak(threads, seconds)
    best = max(patterns, key=lambda name: float(np.median(patterns[name])))
    bandwidth = patterns[best]
    return {
        "isa": current().name,
        "threads": threads,
        "read_pattern": best,
        "read_bytes_per_s": float(np.median(bandwidth)),
        "dot_macs_per_s": float(np.median(peak)),
        "read_values": bandwidth,
        "dot_values": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure read bandwidth and dot-product peak.")
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("--bytes", dest="size", type=int, default=1 << 30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(np.ones(args.size, np.uint8), args.threads)
    if args.json:
        print(json.dumps(result))
    else:
        read, dot = result["read_bytes_per_s"] / 1e9, result["dot_macs_per_s"] / 1e9
        print(f"{result['isa']}, {args.threads} threads: read {read:.1f} GB/s, dot product {dot:.0f} GMAC/s")


if __name__ == "__main__":
    main()
