"""The only probe of the CPU: which instruction set the kernels are compiled for.

Knows no kernel, and no Numba. Everything else asks `current()` and gets one row of the ladder, best first.
`EDGE_GEMMA_ISA=avx2` (or any name below) forces a lower row, for tests and fleet images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

from .arm_features import arm_features

MACHINE = "arm" if llvm.get_default_triple().startswith(("aarch64", "arm64")) else "x86"
"""What this process runs as, which an emulating system tells otherwise of itself."""


@dataclass(frozen=True)
class Isa:
    """One instruction set: what it needs, and what the SIMD vocabulary may assume of it.

    `lanes` is the number of 32-bit lanes of a vector, `registers` how many vectors the CPU holds;
    `dot` names the way `dot4` is done;
    `cpu` is LLVM's name of the least CPU that has it, used when the row is forced on a better machine.
    """

    name: str
    machine: str
    needs: frozenset[str]
    lanes: int
    registers: int
    dot: str
    fma: bool
    half: bool
    cpu: str


def _row(
    name: str, machine: str, needs: str, lanes: int, registers: int, dot: str, *, fma: bool, half: bool, cpu: str
) -> Isa:
    return Isa(name, machine, frozenset(needs.split()), lanes, registers, dot, fma, half, cpu)


LADDER: tuple[Isa, ...] = (
    _row(
        "avx512vnni",
        "x86",
        "avx512f avx512bw avx512dq avx512vl avx512vnni fma f16c",
        16,
        32,
        "vpdpbusd.512",
        fma=True,
        half=True,
        cpu="icelake-client",
    ),
    _row("avxvnni", "x86", "avx2 fma f16c avxvnni", 8, 16, "vpdpbusd.256", fma=True, half=True, cpu="alderlake"),
    _row("avx2", "x86", "avx2 fma f16c", 8, 16, "vpmaddubsw", fma=True, half=True, cpu="x86-64-v3"),
    _row("neon", "arm", "neon dotprod lse", 4, 32, "sdot", fma=True, half=True, cpu="neoverse-n1"),
    _row("generic", "", "", 4, 16, "plain", fma=False, half=False, cpu="generic"),
)


@cache
def current() -> Isa:
    """The row to compile for. Raises ValueError if `EDGE_GEMMA_ISA` names none, or one this CPU lacks."""
    usable = available()
    wanted = os.environ.get("EDGE_GEMMA_ISA", "")
    if not wanted:
        return usable[0]
    for isa in usable:
        if isa.name == wanted:
            return isa
    raise ValueError(f"EDGE_GEMMA_ISA={wanted!r}: this CPU can run {', '.join(isa.name for isa in usable)}")


@cache
def available() -> tuple[Isa, ...]:
    """The rows this process can run, best first. A CPU name given to Numba by the user leaves only `generic`."""
    if "NUMBA_CPU_NAME" in os.environ:
        return LADDER[-1:]
    features = arm_features() | {"neon"} if MACHINE == "arm" else _x86_features()
    return tuple(isa for isa in LADDER if isa.machine in ("", MACHINE) and isa.needs <= features)


def may_use(feature: str) -> bool:
    """Whether to compile with an x86 feature, by LLVM's name, that no row needs: on CPUs that have it, unless a lower
    row is forced."""
    best = available()[0]
    return current() is best and best.machine == MACHINE == "x86" and feature in _x86_features()


def _x86_features() -> frozenset[str]:
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@cache
def target() -> tuple[str, str]:
    """LLVM's CPU name and feature string to compile for: the host's, or those of a forced lower row."""
    isa = current()
    if "NUMBA_CPU_NAME" in os.environ:
        return os.environ["NUMBA_CPU_NAME"], os.environ.get("NUMBA_CPU_FEATURES", "")
    if MACHINE == "arm":
        return isa.cpu, _arm_target(isa)
    if isa is not available()[0]:
        return isa.cpu, ""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _arm_target(isa: Isa) -> str:
    """What the row needs, and for the best row what else the system says is there.

    Under the name of a CPU LLVM would also use what that CPU has by its data sheet, such as SVE, and a hypervisor or an
    old kernel may have switched off.
    """
    more = arm_features() if isa is available()[0] else frozenset()
    return ",".join(f"+{name}" for name in sorted(isa.needs | more))
