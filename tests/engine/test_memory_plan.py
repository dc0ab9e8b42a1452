"""The memory plan is what the engine takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_gemma.engine.memory_plan import KvType, default_chunk, memory_plan, scratch_bytes
from edge_gemma.engine.runner import Runner
from edge_gemma.graph.step import Rows
from edge_gemma.kernels.layout import expert_scratch, matmul_scratch
from edge_gemma.models.layers import Experts
from tests.conftest import TinyGguf


@pytest.mark.parametrize(
    ("case", "format", "kv_type"),
    [
        ("gemma2-256", "Q4_K", "f16"), ("gemma3-256", "Q8_0", "f32"), ("gemma1-mqa", "F16", "f16"),
        ("gemma2-2b", "Q8_0", "q8_0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("context", "chunk"), [(64, 8), (1000, 64)])
def test_buffers_and_cache_are_as_planned(
    tiny_gguf: TinyGguf, case: str, format: str, kv_type: KvType, context: int, chunk: int
) -> None:
    """Of a sequence as long as it may get, fed so that its pages are most: by whole chunks, from an odd position on."""
    runner = Runner(tiny_gguf(case, format), context=context, threads=2, kv_type=kv_type, chunk=chunk)
    programs = [recording.program for recording in runner._recordings.values()]
    allocated = sum(memory.nbytes for p in programs for memory in p._memory.values()) + runner._step.scratch_bytes
    allocated += runner._logits.nbytes
    assert runner.plan.buffers == allocated
    sizes = {"chunk": chunk, "kv_type": kv_type, "threads": 2}
    assert runner.plan == memory_plan(runner.config, runner.weights, context, **sizes)
    table, most = runner.new_table(), 0
    while table.length < context:
        count = min(chunk if table.length else 1 + chunk // 2, context - table.length)
        table.reserve(table.length + count)
        most = max(most, runner.pool.bytes_in_use)
        runner.run([Rows(table, np.full(count, 5))])
        assert table.bytes == runner.pool.bytes_in_use <= most
    assert most == runner.plan.kv_cache == runner.pool.limit_bytes
    two = memory_plan(runner.config, runner.weights, context, sequences=2, **sizes)
    assert two.kv_cache == 2 * most and two.buffers == allocated + 4 * runner.config.vocab_size
    runner.close()


def test_experts_take_scratch_memory_and_buffers(tiny_gguf: TinyGguf) -> None:
    runner = Runner(tiny_gguf("gemma3-256", "Q8_0"), context=16, threads=1)
    runner.close()
    dense, mixed = runner.config, replace(runner.config, experts=Experts(128, 8, 704))
    for chunk in (1, 100, 512):
        assert scratch_bytes(dense, chunk) >= matmul_scratch(chunk) < expert_scratch(chunk)
        assert scratch_bytes(mixed, chunk) >= expert_scratch(chunk)
    assert default_chunk(mixed) == default_chunk(dense) > default_chunk(replace(mixed, experts=Experts(128, 128, 9999)))
