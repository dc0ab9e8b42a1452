"""The instructions that the speed rests on are there, for the instruction set of this run."""

from __future__ import annotations

import re

import pytest

from edge_gemma.kernels.compile import assembly
from edge_gemma.kernels.isa import current
from edge_gemma.kernels.operations import Kernel

DOT = {"vpdpbusd.512": "vpdpbusd", "vpdpbusd.256": "vpdpbusd", "vpmaddubsw": "vpmaddubsw", "partial.reduce": "dot"}
"""The instruction of `dot4` by its way of doing it; plain integer products have none of their own."""
REGISTER = {"vpdpbusd.512": "%zmm", "vpdpbusd.256": "%ymm", "vpmaddubsw": "%ymm", "partial.reduce": "v"}


def instructions(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(rf"\s+(?:{{vex}}\s)?[us]?{name}\s", line)]


@pytest.mark.parametrize("module", ["matvec", "matmul"])
def test_products_use_the_dot_instruction(module: str) -> None:
    isa, text = current(), assembly(Kernel(module, "Q4_0"))
    for way, name in DOT.items():
        found = instructions(text, name)
        assert bool(found) == (name == DOT.get(isa.dot)), f"{name} on {isa.name}"
        assert all(REGISTER[isa.dot] in line for line in found if way == isa.dot)


def test_halves_are_converted_by_the_cpu() -> None:
    text = assembly(Kernel("matmul_float", "F16"))
    name = "fcvtl2?" if current().machine == "arm" else "vcvtph2ps"
    assert bool(instructions(text, name)) == current().half


def hot_loop(text: str) -> list[str]:
    """The lines of the straight piece of code with the most dot products."""
    pieces, name = re.split(r"^\S+:", text, flags=re.MULTILINE), DOT[current().dot]
    return max(pieces, key=lambda piece: len(instructions(piece, name))).splitlines()


def spills(lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(r"\(%rsp\)|\[sp\b", line) and re.search(r"%[xyz]mm|\b[vq]\d", line)]


ROOMY = {"avx512vnni": ("Q4_0", "Q8_0", "Q4_K", "Q6_K"), "neon": ("Q4_0",)}
"""Where 32 vector registers hold a tile. With 16 the compiler keeps weights it has just loaded on the stack."""


def test_the_tile_of_a_product_stays_in_registers() -> None:
    for name in ROOMY.get(current().name, ()):
        assert not spills(hot_loop(assembly(Kernel("matmul", name)))), name
