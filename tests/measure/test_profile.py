"""The profile: every operation of every architecture is in it once, its work is counted right, its JSON is complete."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma import Gemma
from edge_gemma.commands.cli import parser
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.graph.recorder import Recorded
from edge_gemma.graph.step import SequenceRows
from edge_gemma.kernels import operations as ops
from edge_gemma.kernels.layout import SPAN
from edge_gemma.kernels.operations import NO_WINDOW, Kernel
from edge_gemma.measure.profile import Outside, Profile, StepProfile, as_dict, profile
from edge_gemma.measure.profile_parts import Part, gather, label_of, part
from edge_gemma.measure.timestamps import TimestampedRunner
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from tests.conftest import TinyGguf

PRODUCTS = {f"matmul {name}" for name in ("attn_qkv", "attn_output", "ffn_gate_up", "ffn_down", "output")}
ALWAYS = PRODUCTS | {
    "embedding",
    "norm + quantize",
    "rope + append",
    "attention, global layers",
    "gate + quantize",
    "maxima of logits",
}
POST_NORMS = {"norm + add", "attention, local layers"}
LABELS = {
    ("gemma1-mqa", "Q8_0"): ALWAYS | {"add"},
    ("gemma2-256", "Q4_K"): ALWAYS | POST_NORMS | {"logit soft-cap"},
    ("gemma2-untied", "Q4_0"): ALWAYS | POST_NORMS | {"logit soft-cap"},
    ("gemma3-256", "Q6_K"): ALWAYS | POST_NORMS,
}
"""What the parts of a step are called, by model and format."""


def opened(path: Path) -> TimestampedRunner:
    return TimestampedRunner(path, context=64, chunk=16, threads=2)


# ---- a whole profile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "format"), LABELS)
def test_every_row_of_the_table_is_in_one_part(tiny_gguf: TinyGguf, case: str, format: str) -> None:
    path = tiny_gguf(case, format)
    runner = opened(path)
    one, few = (Counter(map(label_of, r.recorded, r.arguments)) for r in map(runner.recording, (1, 8)))
    runner.close()
    result = profile(path, n_prompt=8, n_gen=2, n_depth=3, threads=2, repeats=1)
    assert result.decode and result.prefill
    assert {p.label: p.count for p in result.decode.parts} == one
    assert set(one) == set(few) == LABELS[case, format]
    head = {"matmul output", "logit soft-cap", "maxima of logits"}
    assert {p.label for p in result.prefill.parts} == set(few) - head
    lacking = few - Counter({p.label: p.count for p in result.prefill.parts})
    assert set(lacking) == (set(few) & head) | {"norm + quantize"} and lacking["norm + quantize"] == 1


def test_weights_and_products_are_those_of_the_file(tiny_gguf: TinyGguf) -> None:
    path = tiny_gguf("gemma2-untied", "Q4_0")
    result = profile(path, n_prompt=8, n_gen=1, threads=1, repeats=1)
    with GgufFile.open(path) as file:
        weights = Weights.bind(file, read_config(file))
        matrices = [t for t in weights.tensors() if len(t.shape) == 2 and t is not weights.token_embd]
    assert result.decode and result.prefill
    assert sum(p.weight_bytes for p in result.decode.parts) == sum(t.row_bytes * t.shape[0] for t in matrices)
    attention = sum(p.macs for p in result.decode.parts if p.label.startswith("attention"))
    assert sum(p.macs for p in result.decode.parts) - attention == sum(math.prod(t.shape) for t in matrices)
    in_prefill = sum(p.macs for p in result.prefill.parts if p.label.startswith("matmul"))
    assert in_prefill == 8 * sum(math.prod(t.shape) for t in matrices if t is not weights.output)
    assert {p.formats for p in result.decode.parts if p.weight_bytes} == {("Q4_0",)}


def test_parts_are_what_was_asked_for(tiny_gguf: TinyGguf) -> None:
    path = tiny_gguf("gemma3-256", "Q6_K")
    without = profile(path, n_prompt=8, n_gen=0, threads=1, repeats=1)
    assert without.decode is None and without.outside is None
    assert without.prefill and (without.prefill.rows, without.prefill.position) == (8, 0)
    one = profile(path, n_prompt=1, n_gen=0, threads=1, repeats=1).prefill
    assert one and (one.kind, one.rows) == ("prefill", 1)
    assert {p.label for p in one.parts} == {p.label for p in without.prefill.parts}
    only = profile(path, n_prompt=0, n_gen=3, n_depth=5, threads=1, repeats=1)
    assert only.prefill is None and only.outside and only.outside.steps == 3
    assert only.decode and (only.decode.kind, only.decode.rows, only.decode.position) == ("decode", 1, 5)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"n_prompt": 0, "n_gen": 0}, "nothing to measure"),
        ({"n_prompt": -1}, "-p"),
        ({"n_depth": 2**23}, "-d"),
        ({"repeats": 0}, "-r"),
        ({"threads": 257}, "-t"),
        ({"n_depth": 2000}, "context"),
    ],
)
def test_wrong_values_are_named(tiny_gguf: TinyGguf, wrong: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        profile(tiny_gguf("gemma2-256", "Q4_K"), **wrong)  # type: ignore[arg-type]


# ---- timestamps --------------------------------------------------------------------------------------------------


def test_timestamps_change_no_bit_and_are_in_order(tiny_gguf: TinyGguf) -> None:
    path = tiny_gguf("gemma3-256", "Q6_K")
    with Gemma(path, context=64, threads=2) as model:
        expected = model.logits([5, 6, 7])[-1]
    runner = opened(path)
    for every in (False, True):
        table, runner.every = runner.new_table(), every
        runner.run([SequenceRows(table, np.array([5, 6]), 1)])
        logits = runner.run([SequenceRows(table, np.array([7]), 1)])
        assert np.array_equal(logits[0].view(np.uint32), expected.view(np.uint32))
    body, head, decode = runner.runs[3:]
    one, two = runner.recording(1), runner.recording(2)
    assert [len(run.ticks) - 1 for run in (body, head, decode)] == [len(two.body), len(one.head), len(one.table)]
    assert [len(run.ticks) for run in runner.runs[:3]] == [2] * 3
    for run in runner.runs:
        assert np.all(np.diff(run.ticks) >= 0) and run.ticks[0] > 0
        assert run.total == run.ticks[-1] - run.ticks[0] and run.begun <= run.ended
    assert 0 < runner.nanoseconds_per_tick() < 100
    runner.close()


# ---- single rows -------------------------------------------------------------------------------------------------


@given(
    position=st.integers(0, 40),
    rows=st.integers(1, 12),
    window=st.sampled_from([1, 7, 16, NO_WINDOW]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
)
def test_attention_reads_each_key_once_and_multiplies_it_for_each_query_that_sees_it(
    position: int, rows: int, window: int, kv_heads: int, group: int
) -> None:
    head_dim = 32
    arguments = {"window": window, "head_dim": head_dim, "kv_heads": kv_heads, "heads": kv_heads * group}
    arguments["head_bytes"] = 2 * head_dim * SPAN
    one = part(
        Recorded(ops.ATTEND, Kernel("ops.attention", "attend_f16"), (), "a"), arguments, 1.0, 1.0, rows, position
    )
    seen = [(q, k) for q in range(position, position + rows) for k in range(q + 1) if q - k < window]
    assert one.kv_bytes == 2 * len({k for _, k in seen}) * kv_heads * head_dim * 2
    assert one.macs == 2 * len(seen) * kv_heads * group * head_dim


@pytest.mark.parametrize(("rows", "read"), [(1, 8), (3, 24), (40, 128)])
def test_of_experts_the_chosen_ones_are_read(rows: int, read: int) -> None:
    weight = Tensor("blk.3.ffn_down_exps.weight", FORMATS["Q4_0"], (128, 2816, 704), 0, 0)
    recorded = Recorded(ops.EXPERTS, Kernel("ops.experts", "Q4_0", "l1"), (weight,), "y")
    found = part(recorded, {"choices": 8}, 1.0, 1.0, rows, 0)
    assert found.label == "experts ffn_down_exps"
    assert found.weight_bytes == read * 2816 * 704 // 32 * 18 and found.macs == rows * 8 * 2816 * 704


def test_an_operation_that_is_not_known_has_its_own_name() -> None:
    assert label_of(Recorded(ops.SQUARES, Kernel("ops.statistics", "squares"), (), "s"), {}) == "squares"


def test_parts_add_up() -> None:
    parts = [
        Part("a", 1, 2.0, 1.0, 10, 0, 5, ("Q4_K",)),
        Part("b", 1, 9.0, 8.0),
        Part("a", 1, 4.0, 3.0, 30, 2, 7, ("F16",)),
    ]
    assert gather(parts) == (Part("b", 1, 9.0, 8.0), Part("a", 2, 6.0, 4.0, 40, 2, 12, ("F16", "Q4_K")))
    assert Part("a", 1, 2.0, 1.0, 3000, 1000, 5000).gb_per_s == 2.0
    assert Part("a", 1, 2.0, 1.0, 3000, 1000, 5000).gmac_per_s == 2.5
    assert Part("a", 1, 0.0, 0.0, 3000).gb_per_s == 0.0


# ---- the command -------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    """`edge-gemma bench --profile` in this process."""
    args = parser().parse_args(["bench", *arguments, "--profile"])
    status: int = args.run(args)
    return status


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_json_has_all_fields(tiny_gguf: TinyGguf, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_gguf("gemma2-256", "Q4_K")
    arguments = ["-p", "8", "-n", "2", "-d", "4", "-t", "2", "-r", "1"]
    assert command(str(path), "--json", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    about = {"model_filename", "architecture", "model_size", "model_n_params"}
    about |= {"isa", "strategies", "cpu_info", "build_version"}
    settings = {"n_depth", "n_threads", "repetitions", "type_k", "type_v"}
    assert set(result) == about | settings | {"decode", "prefill", "outside"}
    assert (result["n_depth"], result["n_threads"], result["model_filename"]) == (4, 2, str(path))
    for step, rows in ((result["decode"], 1), (result["prefill"], 8)):
        assert set(step) == names(StepProfile) | {"sum_us"} and step["rows"] == rows and step["position"] == 4
        assert step["sum_us"] == pytest.approx(sum(p["us"] for p in step["parts"]))
        assert sum(p["share"] for p in step["parts"]) == pytest.approx(1)
        assert all(set(p) == names(Part) | {"share", "gb_per_s", "gmac_per_s"} for p in step["parts"])
    assert set(result["outside"]) == names(Outside) | {"share"} and result["outside"]["steps"] == 2


def test_what_was_not_measured_is_null() -> None:
    assert as_dict(Profile({"a": 1}, None, None, None)) == {"a": 1, "decode": None, "prefill": None, "outside": None}


def test_the_table_names_every_part(tiny_gguf: TinyGguf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(tiny_gguf("gemma2-256", "Q4_K")), "-p", "8", "-n", "2", "-r", "1") == 0
    out = capsys.readouterr().out
    decode, prefill, outside = out.partition("\nweights are asked for: ")[0].split("\n\n")
    assert decode.startswith("decode step at position 0: ") and prefill.startswith("chunk of 8 tokens at position 0: ")
    for label in LABELS["gemma2-256", "Q4_K"]:
        assert sum(line.startswith(label) for line in decode.splitlines()) == 1, label
    assert len({len(line) for line in decode.splitlines()[1:]}) == 1
    assert outside.startswith("outside the program, of 2 streamed tokens ")


@pytest.mark.parametrize(("option", "value"), [("-p", "8,16"), ("-n", "1,2"), ("-d", "0,4"), ("-t", "1,2")])
def test_a_profile_is_of_one_value(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: a profile is of one value, got 2$"):
        command("unread.gguf", option, value)
