"""The memory plan is what the engine takes, and the process with it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.engine.memory_plan import KvType, default_chunk, memory_plan, scratch_bytes
from edge_gemma.engine.runner import Runner
from edge_gemma.gguf.file import GgufFile
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels.layout import expert_scratch, matmul_scratch
from edge_gemma.models.layers import Experts
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from tests.conftest import TinyGguf

ROOT = Path(__file__).parents[2]
WHOLE_CONTEXTS = """
import sys
from pathlib import Path
from edge_gemma import Gemma, plan_memory

def anonymous():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])

path, context, sequences, kv_type = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
planned, before = plan_memory(path, context, sequences, kv_type=kv_type).own, anonymous()
with Gemma(path, context=context, slots=sequences, kv_type=kv_type, prefix_cache=0) as model:
    held = [model.sequence() for _ in range(sequences)]
    for number, sequence in enumerate(held):
        sequence.append([2, *(100 + (i + number) % 1000 for i in range(context - 1))])
    print(planned, anonymous() - before)
"""


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
        runner.run([SequenceRows(table, np.full(count, 5))])
        assert table.bytes == runner.pool.bytes_in_use <= most
    assert most == runner.plan.kv_cache == runner.pool.limit_bytes
    two = memory_plan(runner.config, runner.weights, context, sequences=2, **sizes)
    assert two.kv_cache == 2 * most and two.buffers == allocated + 4 * runner.config.vocab_size
    runner.close()


@pytest.mark.parametrize(
    ("case", "looked_up"),
    [("gemma4-e2b", {"per_layer_token_embd.weight"}), ("gemma2-untied", {"token_embd.weight"}), ("gemma2-2b", set())],
)
def test_tables_that_are_only_looked_up_are_not_counted(tiny_gguf: TinyGguf, case: str, looked_up: set[str]) -> None:
    with GgufFile.open(tiny_gguf(case)) as file:
        config = read_config(file)
        weights = Weights.bind(file, config)
        counted = sum(t.nbytes for t in weights.tensors() if t.name not in looked_up)
        assert memory_plan(config, weights, 64).weights == counted


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what no file backs")
@pytest.mark.parametrize(("context", "sequences", "kv_type"), [(2048, 3, "f16"), (4096, 1, "q8_0")])
def test_a_process_takes_what_is_planned(real_model: Path, context: int, sequences: int, kv_type: KvType) -> None:
    """To 2% and 20 MB; pages of the file are left out on both sides, and a compiler, which a first start has."""
    Runner(real_model, context=context, kv_type=kv_type).close()
    command = [sys.executable, "-c", WHOLE_CONTEXTS, real_model, str(context), str(sequences), kv_type]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    planned, taken = map(int, done.stdout.split())
    assert abs(taken - planned) < 0.02 * planned + 20e6, (planned, taken)


def test_experts_take_scratch_memory_and_buffers(tiny_gguf: TinyGguf) -> None:
    runner = Runner(tiny_gguf("gemma3-256", "Q8_0"), context=16, threads=1)
    runner.close()
    dense, mixed = runner.config, replace(runner.config, experts=Experts(128, 8, 704))
    for chunk in (1, 100, 512):
        assert scratch_bytes(dense, chunk) >= matmul_scratch(chunk) < expert_scratch(chunk)
        assert scratch_bytes(mixed, chunk) >= expert_scratch(chunk)
    assert default_chunk(mixed) == default_chunk(dense) > default_chunk(replace(mixed, experts=Experts(128, 128, 9999)))
