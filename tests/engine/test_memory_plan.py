"""The memory plan is what the engine takes."""

from __future__ import annotations

import pytest

from edge_gemma import Gemma
from edge_gemma.engine.memory_plan import memory_plan
from edge_gemma.models.weights import Weights
from tests.conftest import TinyGguf


@pytest.mark.parametrize(
    ("case", "format", "kv_type"),
    [("gemma2-256", "Q4_K", "f16"), ("gemma3-256", "Q8_0", "f32"), ("gemma1-mqa", "F16", "f16")],
)
@pytest.mark.parametrize(("context", "chunk"), [(64, 8), (1000, 64)])
def test_buffers_and_cache_are_as_planned(
    tiny_gguf: TinyGguf, case: str, format: str, kv_type: str, context: int, chunk: int
) -> None:
    with Gemma(tiny_gguf(case, format), context=context, threads=2, kv_type=kv_type, chunk=chunk) as model:
        engine = model._engine
        assert engine is not None
        allocated = sum(memory.nbytes for memory in engine._program._memory.values()) + engine._step.scratch_bytes
        assert model.plan.buffers == allocated
        assert model.plan.kv_cache == sum(memory.nbytes for memory in engine._cache._memory)
        assert model.plan == memory_plan(
            model.config, Weights.bind(engine._file, model.config), context, chunk=chunk, kv_type=kv_type, threads=2
        )
