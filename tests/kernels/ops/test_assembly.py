"""The instructions that the speed rests on are there, and its loops stay in registers, in this instruction set."""

from __future__ import annotations

import re

import pytest

from edge_gemma.kernels.isa import current
from edge_gemma.kernels.jit.compile import assembly
from edge_gemma.kernels.operations import Kernel

DOT = {"vpdpbusd.512": "vpdpbusd", "vpdpbusd.256": "vpdpbusd", "vpmaddubsw": "vpmaddubsw", "sdot": "dot"}
"""The instruction of `dot4` by its way of doing it; plain integer products have none of their own."""
REGISTER = {"vpdpbusd.512": "%zmm", "vpdpbusd.256": "%ymm", "vpmaddubsw": "%ymm", "sdot": "v"}


ANY_STRATEGY = dict.fromkeys(("matvec", "experts", "experts_gated"), "l2x3")


def instructions(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(rf"\s+(?:{{vex}}\s)?[us]{{0,2}}{name}\s", line)]


@pytest.mark.parametrize("module", ["matvec", "matmul", "experts", "experts_gated"])
def test_products_use_the_dot_instruction(module: str) -> None:
    isa, text = current(), assembly(Kernel(f"ops.{module}", "Q4_0", ANY_STRATEGY.get(module, "")))
    for way, name in DOT.items():
        found = instructions(text, name)
        assert bool(found) == (name == DOT.get(isa.dot)), f"{name} on {isa.name}"
        assert all(REGISTER[isa.dot] in line for line in found if way == isa.dot)


def test_halves_are_converted_by_the_cpu() -> None:
    text = assembly(Kernel("ops.matmul_float", "F16"))
    name = "fcvtl2?" if current().machine == "arm" else "vcvtph2ps"
    assert bool(instructions(text, name)) == current().half


# ---- spills ------------------------------------------------------------------------------------------------------

LABEL = re.compile(r"([.\w$]+):")
JUMP = re.compile(r"\s+(?:j\w+|b\.\w+|b|cbn?z|tbn?z)\s.*?([.\w$]+)\s*(?:[#;/].*)?$")
PRODUCT = re.compile(r"\s+(?:\{vex\}\s*)?(?:vpdpbusd|vpmaddubsw|vpmaddwd|[us]{0,2}dot)\s")
ON_STACK = re.compile(r"\(%rsp\)|\[sp\b")
FRAME = re.compile(r"\smovq\s+%rsp, %rbp")
"""Where this is absent, %rbp is a register like any other."""
VECTOR = re.compile(r"%[xyz]mm\d|\b[qv]\d")


def product_loops(text: str) -> list[list[str]]:
    """The lines of each loop that has products and no loop inside."""
    assert not FRAME.search(text)
    lines = text.splitlines()
    places = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    jumps = ((places.get(match[1], i + 1), i) for i, line in enumerate(lines) if (match := JUMP.match(line)))
    loops = {(start, end) for start, end in jumps if start <= end}
    innermost = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops - {(a, b)})]
    return [lines[a : b + 1] for a, b in innermost if any(map(PRODUCT.match, lines[a : b + 1]))]


def spills(loop: list[str]) -> int:
    """Instructions that put a vector register on the stack, or take one from there."""
    return sum(bool(ON_STACK.search(line) and VECTOR.search(line)) for line in loop)


FORMATS_LOOKED_AT = "Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ3_XXS", "IQ1_M"
X86 = [("matmul", f) for f in FORMATS_LOOKED_AT]
X86 += [("matvec", f"{f}{few}") for f in FORMATS_LOOKED_AT for few in ("", "_few")]
X86 += [("experts", "Q4_0"), ("experts", "Q4_0_few"), ("experts_gated", "Q4_0")]
LOOKED_AT = {"avx512vnni": X86, "avxvnni": X86, "avx2": X86, "neon": [("matmul", "Q4_0")], "generic": []}

MOST_SPILLS: dict[str, dict[str, int]] = {
    "avx512vnni": {"matvec.Q6_K": 110, "matvec.IQ3_XXS": 230, "matvec.IQ1_M": 90},
    "avxvnni": {
        **{"matvec.Q4_K": 130, "matvec.Q6_K": 200},
        **{"matvec.Q4_K_few": 20, "matvec.Q6_K_few": 25},
        **{"matvec.IQ3_XXS": 190, "matvec.IQ1_M": 150, "matvec.IQ3_XXS_few": 10, "matvec.IQ1_M_few": 15},
    },
    "avx2": {
        **{"matmul.Q4_0": 10, "matmul.Q4_K": 10, "matmul.Q6_K": 40, "matmul.Q8_0": 10},
        **{"experts.Q4_0": 12, "experts_gated.Q4_0": 12},
        **{"matvec.Q4_K": 95, "matvec.Q6_K": 250, "matvec.Q8_0_few": 5, "matvec.Q4_K_few": 10, "matvec.Q6_K_few": 30},
        **{"matmul.IQ3_XXS": 20, "matmul.IQ1_M": 30},
        **{"matvec.IQ3_XXS": 210, "matvec.IQ1_M": 180, "matvec.IQ3_XXS_few": 10, "matvec.IQ1_M_few": 15},
    },
}
"""Where not all fits the registers; everything else that is looked at does not spill at all.

The loops of `matvec` over K-quants are whole super-blocks of 700 to 1,200 instructions; with 16 registers the bits that
8 blocks share are put aside between them; with 32 it is tables of grids, which are as near there as where they were.
Memory, not these, limits decoding. The tile of `matmul` on AVX2 has 12 accumulators in 16 registers: some rest on the
stack while a block of 180 to 330 instructions is multiplied.
"""


@pytest.mark.parametrize("module", ["matmul", "matvec", "experts", "experts_gated"])
def test_loops_of_products_stay_in_registers(module: str) -> None:
    most = MOST_SPILLS.get(current().name, {})
    found = {}
    for name in (name for m, name in LOOKED_AT[current().name] if m == module):
        loops = product_loops(assembly(Kernel(f"ops.{module}", name, ANY_STRATEGY.get(module, ""))))
        assert loops, name
        found[f"{module}.{name}"] = max(map(spills, loops))
    assert not {name: count for name, count in found.items() if count > most.get(name, 0)}


def test_a_spill_is_seen() -> None:
    text = """
f:
\tvmovups\t64(%rsp), %zmm0
.LBB0_1:
\tvmovups\t(%rsp), %zmm1
.LBB0_2:
\tvpdpbusd\t32(%rsp), %zmm0, %zmm1
\tvmovups\t%zmm1, 128(%rsp)
\tmovq\t8(%rsp), %rax
\tvmovups\t(%rax), %zmm1
\tdecq\t%rcx
\tjne\t.LBB0_2
\tjmp\t.LBB0_1
"""
    (loop,) = product_loops(text)
    assert spills(loop) == 2
    with pytest.raises(AssertionError):
        product_loops(text.replace("f:", "f:\n\tmovq\t%rsp, %rbp"))
    arm = "f:\n.LBB0_1:\n\tusdot\tv0.4s, v1.16b, v2.16b\n\tstr\tq0, [sp, #16]\n\tcbnz\tx8, .LBB0_1\n\tb.ne\t.LBB0_9\n"
    assert [spills(loop) for loop in product_loops(arm)] == [1]
