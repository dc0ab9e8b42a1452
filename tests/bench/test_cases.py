"""The list of cases, what a token costs in a model, and which cases have room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from bench import rounds
from bench.cases import Case, Kind, estimate, matrix, only, quick
from bench.models import MODELS, Facts
from bench.processes import Worker
from bench.rounds import Setup, Skipped
from bench.synthetic import SHAPES, Shape, plan, write
from bench.targets import targets
from edge_gemma.measure.info import describe

GB = 10**9
FACTS = Facts(
    file_bytes=2 * GB, token_bytes=2 * GB, prompt_macs=2 * GB, output_macs=6 * 10**8, repacked=GB, vocabulary=256_000,
    kv_layers=((0, 4096), (4, 4096)),
)  # fmt: skip
SMALL = Shape("gemma3", 8, 256, 512, 2, 1, 128, 600, 1024, 64, 1e6, 8.0)
EVERYTHING = Setup(Path("models"), "llama", "llama-avx2", "torch", Path("hf"))


def test_names_are_one_of_a_kind() -> None:
    names = [case.name for case in matrix(2)]
    assert len(names) == len(set(names))
    assert names[:3] == ["2b-Q4_0/short/t2", "2b-Q8_0/short/t2", "2b-Q4_K_M/short/t2"]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_matrix_has_every_case_that_a_target_asks_for(threads: int) -> None:
    measured = {(case.model, case.kind, case.isa) for case in matrix(threads)}
    assert {(t.model, t.kind, t.isa) for t in targets()} <= measured
    assert {case.threads for case in matrix(threads)} <= {1, threads}


def test_models_exist_as_shapes() -> None:
    assert {model.shape for model in MODELS.values()} <= {*SHAPES, ""}


def test_quick_is_part_of_everything_and_quick() -> None:
    assert {case.name for case in quick(2)} <= {case.name for case in matrix(2)}
    assert sum(estimate(case, FACTS) for case in quick(2)) < 180


def test_only_takes_names_patterns_and_parts() -> None:
    cases = matrix(2)
    assert [c.name for c in only(cases, ["2b-Q4_0/short/t2"])] == ["2b-Q4_0/short/t2"]
    assert {c.isa for c in only(cases, ["avx2"])} == {"avx2"}
    assert {c.model for c in only(cases, ["9b*/short/*"])} == {"9b-Q4_0", "9b-Q8_0", "9b-Q4_K_M"}
    assert only(cases, []) == cases
    assert not only(cases, ["nothing"])


def test_a_token_reads_all_weights_and_the_visible_cache() -> None:
    assert FACTS.kv_bytes(0) == 2 * 4096
    assert FACTS.kv_bytes(9) == (10 + 4) * 4096
    assert FACTS.decode_bytes(0, 3) == 2 * GB + 2 * (2 * 4096)  # positions 0, 1, 2: on average one other is seen


def test_facts_of_a_file(tmp_path: Path) -> None:
    """By the plan that the file was written from, and the sizes of the shape."""
    facts = Facts.of(written(tmp_path))
    tensors = plan(SMALL, "Q4_0", pure=True)
    layers = sum(t.rows * t.columns for t in tensors if t.name.startswith("blk."))
    embedding, vectors = 600 * 256, sum(t.columns for t in tensors if not t.rows)
    assert facts.prompt_macs == layers
    assert facts.output_macs == embedding
    assert facts.macs_per_prompt_token(100) == layers + embedding / 100
    assert facts.repacked == layers * 18 // 32
    assert facts.token_bytes == (layers + embedding) * 18 // 32 + 4 * vectors  # tied: the embedding is read too
    assert facts.token_bytes < facts.file_bytes == (tmp_path / "model.gguf").stat().st_size
    assert facts.kv_bytes(0) == 8 * 2 * 2 * 128
    assert facts.kv_bytes(999) == (7 * 64 + 1 * 1000) * 2 * 2 * 128  # every sixth layer is global


def test_an_untied_embedding_is_not_read(tmp_path: Path) -> None:
    info = describe(written(tmp_path))
    tied, untied = Facts.of_description(info), Facts.of_description(info | {"tied_output": False})
    assert tied.token_bytes - untied.token_bytes == 599 * 256 * 18 // 32  # all rows but one


def written(folder: Path) -> Path:
    write(folder / "model.gguf", SMALL, "Q4_0", pure=True)
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("free", "repack"),
    [(5 * GB, True), (int(3.9 * GB), False)],
)
def test_room_counts_the_second_copy(free: int, repack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert rounds.room(Case("2b-Q4_0", "short", 2), EVERYTHING, FACTS) is repack


def test_no_room_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * GB))
    with pytest.raises(Skipped, match=r"3\.5 GB of memory needed, 2\.0 GB available"):
        rounds.room(Case("2b-Q4_0", "short", 2), EVERYTHING, FACTS)


def test_alone_ours_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(3.1 * GB)))
    alone = Setup(Path("models"), "", "", "", None)
    assert rounds.room(Case("2b-Q4_0", "short", 2), alone, FACTS) is True


def test_a_peer_with_avx512_is_no_avx2_peer() -> None:
    case = Case("2b-Q4_0", "short", 2, peer="llama.cpp-avx2", isa="avx2")
    rounds._check_peer(case, {"system": "AVX2 = 1 | FMA = 1"})
    with pytest.raises(Skipped, match="built with AVX-512"):
        rounds._check_peer(case, {"system": "AVX2 = 1 | AVX512 = 1 | "})


class Recorder:
    """A worker that takes a second for a prompt and half a second for a turn, and remembers what it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def ask(self, do: str, **_: Any) -> Any:
        self._log.append(f"{self._name} {do}")
        return {"prompt": 1.0, "generate": 0.5, "measure": {"read": float(len(self._log))}}.get(do)


@pytest.mark.parametrize("kind", ["short", "long"])
def test_a_round_goes_by_turns(kind: Kind) -> None:
    log: list[str] = []
    ours, peer, machine = (cast(Worker, Recorder(name, log)) for name in ("ours", "peer", "machine"))
    case = Case("2b-Q4_0", kind, 2)
    measured = rounds.collected(rounds._speed(rounds.Bench(case, ours, peer, machine)))
    names = {"short": ("pp512", "tg64"), "long": ("pp4096", "tg64@4096")}[kind]
    assert measured["ours"] == measured["peer"] == dict(zip(names, (case.prompt, 32.0), strict=True))
    work = [entry for entry in log if not entry.endswith("clear")]
    turns = ["ours generate", "peer generate"] * 4
    assert work == ["machine measure", "ours prompt", "peer prompt", "machine measure", *turns, "machine measure"]
    assert log.count("peer clear") == (2 if kind == "short" else 1)
    places = [place for place, entry in enumerate(log, 1) if entry == "machine measure"]
    assert measured["limits"]["read"] == sum(places) / 3
