"""The list of cases, what a token costs in a model, which cases have room, and rounds as they are measured."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import psutil
import pytest

from bench import cases, rounds, synthetic_gemma4
from bench.cases import Case, matrix, only, quick
from bench.models import MODELS, OVERHEAD, Facts
from bench.processes import WorkerError
from bench.profile_tables import profiles
from bench.results import Result, measurement, seconds_a_round
from bench.rounds import Setup, Skipped
from bench.side_by_side import header
from bench.synthetic import SHAPES, Shape, plan, write
from bench.tables import full
from bench.targets import targets
from tests.goldens.gemma4_cases import GEMMA4_CASES, Gemma4Case, write_gguf

GB = 10**9
FACTS = Facts(
    file_bytes=2 * GB, token_bytes=2 * GB, layer_macs=2 * GB, output_macs=6 * 10**8, repacked=GB, vocabulary=256_000,
    kv_layers=((0, 4096), (4, 4096)), kv_kept=((0, 4096), (4, 4096)),
)  # fmt: skip
SMALL = Shape(8, 256, 512, 2, 1, 128, vocab=600, window=64)
FACTS_NEEDED = (("decode_bytes", 1e6), ("prompt_macs", 1e6))
FIRST = Case("2b-Q4_0", "short", 2)
PEER = Setup(Path("models"), {"llama.cpp": "python"})


def test_names_are_one_of_a_kind_and_say_all() -> None:
    names = [case.name for case in matrix(2)]
    assert len(names) == len(set(names))
    assert {model.shape for model in MODELS.values()} <= {*SHAPES, *synthetic_gemma4.SHAPES, ""}
    assert names[:3] == ["2b-Q4_0/short/t2", "2b-Q8_0/short/t2", "2b-Q4_K_M/short/t2"]
    assert [Case.named(case.name) for case in matrix(2)] == only(matrix(2), [], rounds=5)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_matrix_has_every_case_that_a_target_asks_for(threads: int) -> None:
    measured = {(case.model, case.kind, case.variant) for case in matrix(threads)}
    assert {(t.model, t.kind, t.variant) for t in targets()} <= measured
    assert {case.threads for case in matrix(threads)} <= {1, threads}
    assert len({case.name for case in matrix(threads)}) == len(matrix(threads))


def test_quick_is_part_of_everything_and_quick() -> None:
    assert {case.name for case in quick(2)} <= {case.name for case in matrix(2)}
    assert sum(case.rounds * seconds_a_round()[case.name] for case in quick(2)) < 180


def test_only_takes_names_patterns_and_parts() -> None:
    known = matrix(2)
    assert [c.name for c in only(known, ["2b-Q4_0/short/t2"])] == ["2b-Q4_0/short/t2"]
    assert {c.isa for c in only(known, ["avx2"])} == {"avx2"}
    assert {c.model for c in only(known, ["9b*/short/*"])} == {"9b-Q4_0", "9b-Q8_0", "9b-Q4_K_M"}
    assert only(known, []) == known
    assert not only(known, ["nothing"])


# ---- what a model costs --------------------------------------------------------------------------------------------


def test_a_token_reads_all_weights_and_the_visible_cache() -> None:
    assert FACTS.kv_bytes(0) == 2 * 4096
    assert FACTS.kv_bytes(9) == (10 + 4) * 4096
    assert FACTS.decode_bytes(0, 3) == 2 * GB + 2 * (2 * 4096)  # positions 0, 1, 2: on average one other is seen


def test_facts_of_a_file(tmp_path: Path) -> None:
    """By the plan that the file was written from, and the sizes of the shape."""
    write(tmp_path / "model.gguf", SMALL, "Q4_0")
    facts = Facts.of(tmp_path / "model.gguf")
    layers = sum(size[0] * size[1] for name, size, _ in plan(SMALL, "Q4_0") if len(size) == 2 and name[:3] == "blk")
    vectors = sum(size[0] for _, size, _ in plan(SMALL, "Q4_0") if len(size) == 1)
    embedding = 600 * 256 * 210 // 256  # Q6_K
    assert facts.layer_macs == layers
    assert facts.output_macs == 600 * 256
    assert facts.prompt_macs(100) == layers + 600 * 256 / 100
    assert facts.repacked == layers * 18 // 32
    assert facts.token_bytes == layers * 18 // 32 + embedding + 4 * vectors  # tied: the embedding is read too
    assert facts.token_bytes < facts.file_bytes == (tmp_path / "model.gguf").stat().st_size
    assert facts.kv_bytes(0) == 8 * 2 * 2 * 128
    assert facts.kv_bytes(999) == (4 * 64 + 4 * 1000) * 2 * 2 * 128  # every other layer is global


@pytest.mark.parametrize("name", ["gemma4-e2b", "gemma4-26b", "gemma4-untied"])
def test_tables_cost_a_row_and_experts_the_chosen_share(name: str, tmp_path: Path) -> None:
    case = GEMMA4_CASES[name]
    write_gguf(case, tmp_path / "model.gguf", "Q4_0")
    facts = Facts.of(tmp_path / "model.gguf")
    parts = [(t, part_read(case, t.name)) for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors]
    macs = [(t.n_elements, part) for t, part in parts if "blk" in t.name and t.tensor_type.name == "Q4_0"]
    assert facts.token_bytes == pytest.approx(sum(int(t.n_bytes) * part for t, part in parts))
    assert facts.layer_macs == sum(int(n) * part for n, part in macs)
    assert facts.output_macs == case.vocab * case.width
    assert facts.repacked == sum(int(n) * 18 // 32 for n, part in macs if part)


def part_read(case: Gemma4Case, name: str) -> float:
    """Of a tensor, for one token."""
    _, layer, *_ = name.split(".")
    if name == "per_layer_token_embd.weight" or (name == "token_embd.weight" and not case.tied):
        return 1 / case.vocab
    if name.endswith("_exps.weight"):
        return case.used / case.experts
    return 0 if any(of in name for of in ("attn_k", "attn_v")) and case.shares(int(layer)) else 1


def test_layers_that_share_keys_read_them_and_keep_none(tmp_path: Path) -> None:
    write_gguf(GEMMA4_CASES["gemma4-e2b"], tmp_path / "model.gguf", "Q4_0")  # LLGLLGLLG, the last three share
    facts = Facts.of(tmp_path / "model.gguf")
    local, global_ = (2 * 2 * size for size in (32, 64))
    assert facts.kv_bytes(99) == 6 * 12 * local + 3 * 100 * global_
    assert facts.cache_bytes(100) == 4 * 12 * local + 2 * 100 * global_
    assert facts.need(100, peer=False) == facts.file_bytes + facts.cache_bytes(100) + OVERHEAD


@pytest.mark.parametrize(
    ("free", "setup", "repack"),
    [(5.0, PEER, True), (3.9, PEER, False), (3.1, Setup(Path("models"), {}), True)],
)
def test_room_counts_the_second_copy(free: float, setup: Setup, repack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free * GB)))
    assert rounds.room(FIRST, setup, FACTS) is repack


def test_no_room_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * GB))
    with pytest.raises(Skipped, match=r"3\.5 GB of memory needed, 2\.0 GB available"):
        rounds.room(FIRST, PEER, FACTS)


# ---- rounds --------------------------------------------------------------------------------------------------------


class Recorder:
    """A worker that takes a second for a prompt and half a second for a turn, and remembers what it was asked."""

    def __init__(self, name: str, log: list[str], **answers: object) -> None:
        self._name, self._log = name, log
        self._answers = {"prompt": 1.0, "generate": 0.5, "measure": {"read": 1.0}} | answers

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.append(f"{self._name} closed")

    def ask(self, do: str, **_: Any) -> Any:
        self._log.append(f"{self._name} {do}")
        return self._answers.get(do)


def test_a_peer_with_avx512_is_no_avx2_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"python": False}
    monkeypatch.setattr(rounds, "Worker", lambda *_: Recorder("peer", [], describe="P", has_avx512=has["python"]))
    setup = Setup(Path("models"), {"llama.cpp": "python", "llama.cpp-avx2": "python"})
    assert rounds.described("llama.cpp-avx2", setup) == "P"
    has["python"] = True
    assert rounds.described("llama.cpp", setup) == "P"
    with pytest.raises(WorkerError, match="built with AVX-512"):
        rounds.described("llama.cpp-avx2", setup)


@pytest.mark.parametrize("kind", ["short", "long"])
def test_a_round_goes_by_turns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    scripts = {"ours.py": "ours", "llama.py": "peer", "machine.py": "machine"}
    monkeypatch.setattr(rounds, "Worker", lambda script, *_: Recorder(scripts[script], log))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GB))
    case = Case("2b-Q4_0", kind, 2, rounds=1)
    lines = rounds.measure(case, PEER, FACTS, lambda _: None)
    names = {"short": ("pp512", "tg64"), "long": ("pp4096", "tg64@4096")}[kind]
    figures = [
        (side, name, float(value))
        for name, value in zip(names, (case.prompt, 32.0), strict=True)
        for side in ("ours", "peer")
    ]
    timed = [m for m in lines if m["side"] in ("ours", "peer")]
    assert [(m["side"], m["measure"], m["value"]) for m in timed] == figures
    assert [m["side"] for m in lines].count("limits") == 3
    work = [entry for entry in log[log.index("machine measure") :] if not entry.endswith(("clear", "closed"))]
    turns = ["ours generate", "peer generate"] * 4
    assert work == ["machine measure", "ours prompt", "peer prompt", "machine measure", *turns, "machine measure"]
    assert log.count("peer clear") - 1 == (2 if kind == "short" else 1)  # the first is of the warm-up
    assert log[-3:] == ["machine closed", "peer closed", "ours closed"]


def test_every_kind_of_work_is_done_by_real_processes_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ours alone, with a small model; the processes of one case can do the work of others."""
    write(tmp_path / "2b-Q4_0.gguf", SMALL, "Q4_0")
    monkeypatch.setattr(cases, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(cases, "PROFILE_REPEATS", 1)
    kinds = {"short": rounds._speed, "rows": rounds._rows, "busy": rounds._busy, "profile": rounds._profile}
    setup, facts = Setup(tmp_path, {}), Facts.of(tmp_path / "2b-Q4_0.gguf")
    lines = rounds.measure(Case("2b-Q4_0", "overhead", 2, rounds=1), setup, facts, lambda _: None)
    result = Result([header(setup), *lines])
    with ExitStack() as stack:
        bench = rounds._open(stack, Case("2b-Q4_0", "busy", 2), setup, facts, True)
        for kind, work in kinds.items():
            figures = [*rounds._limits(bench), *work(bench), *(("model", *fact) for fact in FACTS_NEEDED)]
            result.lines += [measurement(Case("2b-Q4_0", kind, 2), side, n, 0, v) for side, n, v in figures]
    assert all(
        value >= 0 for of in result.cases().values() for series in of.series.values() for value in series.values()
    )
    shown = full([result]) + profiles([result])
    assert "### Gemma 2 2B shape, Q4_0\n" in shown and "threads, medians of" in shown
    assert all(f"| Gemma 2 2B shape, Q4_0, 2 threads{end} |" in shown for end in (" | pp512", " | tg64", " | busy1"))
    assert all(f"| Gemma 2 2B shape, Q4_0, 2 threads, {kind} |" in shown for kind in ("short", "rows", "overhead"))


def test_a_start_is_measured_warm_and_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def first_token(command: list[str], _model: Path, environment: dict[str, str] | None) -> dict[str, float]:
        cold = "EDGE_GEMMA_CACHE_DIR" in (environment or {}) and str(tmp_path) not in str(environment)
        asked.append(("ours cold" if cold else "ours") if "edge_gemma" in command else "peer")
        return {"first_token": float(len(asked))}

    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(rounds, "first_token", first_token)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GB))
    lines = rounds.measure(Case("2b-Q4_0", "start", 2, rounds=2), PEER, FACTS, lambda _: None)
    assert asked == ["ours", "peer", "ours", "peer", "ours cold", "ours", "peer"]
    assert [(m["side"], m["measure"], m["round"], m["value"]) for m in lines[2:]] == [
        ("ours", "first_token", 0, 3.0), ("peer", "first_token", 0, 4.0), ("ours", "cold", 0, 5.0),
        ("ours", "first_token", 1, 6.0), ("peer", "first_token", 1, 7.0),
    ]  # fmt: skip
