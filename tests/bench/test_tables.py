"""Results: statistics over rounds, targets, Markdown, comparison. No measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import record, report, tables
from bench.compare import changes, rendered, verdict
from bench.targets import Target, find, targets

ROOT = Path(__file__).resolve().parents[2]
Round = dict[str, dict[str, float]]


def case(model: str, kind: str, rounds: list[Round], **other: Any) -> dict[str, Any]:
    fields = {
        "model": model, "kind": kind, "threads": 2, "isa": "", "peer": "llama.cpp", "title": f"Model {model}",
        "commit": "abc", "time": "2030-01-02T03:04:05Z", "engines": {"ours": {"engine": "edge-gemma"}}, "notes": [],
        "facts": {"decode_bytes": 2e9, "prompt_macs": 2e9, "kv_bytes_at_start": 50e6},
    }  # fmt: skip
    return fields | {"rounds": rounds} | other


def speed(ours: float, peer: float, read: float = 50e9, dot: float = 1e12) -> Round:
    """A round of a short case in which prompts are ten times as fast as generation."""
    return {
        "limits": {"read": read, "dot": dot},
        "ours": {"pp512": 10 * ours, "tg64": ours},
        "peer": {"pp512": 10 * peer, "tg64": peer},
    }


def result(**cases: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": "A CPU", "cores": 2, "memory_bytes": 24 * 2**30, "system": "Linux x86_64", "virtual": False}
    software = {"python": "3.11"}
    return {"format": record.FORMAT, "machine": machine, "software": software, "cases": cases, "skipped": {}}


SHORT = case("2b-Q4_0", "short", [speed(20, 10), speed(30, 20), speed(24, 10)])


def target(work: str, asked: str = "") -> Target:
    return next(t for t in targets() if t.work == work and asked in t.asked)


# ---- statistics --------------------------------------------------------------------------------------------------


def test_leads_are_taken_round_by_round() -> None:
    assert record.leads(SHORT, "tg64") == [2.0, 1.5, 2.4]


def test_a_shorter_time_leads() -> None:
    start = case("2b-Q4_0", "start", [{"ours": {"first_token": 0.5}, "peer": {"first_token": 2.0}}])
    assert record.leads(start, "first_token") == [4.0]


def test_shares_are_of_the_limit_of_the_same_round() -> None:
    drifting = case("2b-Q4_0", "short", [speed(20, 10, read=50e9), speed(20, 10, read=80e9, dot=8e11)])
    assert record.bandwidth_shares(drifting, "tg64") == [0.8, 0.5]
    assert record.peak_shares(drifting, "pp512") == [0.4, 0.5]


def test_a_result_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"models": []}))
    with pytest.raises(ValueError, match=r"old\.json: not a result of bench/side_by_side\.py in format 2"):
        record.load(tmp_path / "old.json")


def test_saved_results_load(tmp_path: Path) -> None:
    record.save(result(a=SHORT), tmp_path / "r.json")
    assert record.load(tmp_path / "r.json") == result(a=SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


# ---- targets -----------------------------------------------------------------------------------------------------


def test_the_median_is_judged() -> None:
    assert target("decode, 2B Q4_0", "llama.cpp").judge(result(a=SHORT)) == ("2.00x llama.cpp", "yes")
    assert target("decode, 2B Q4_0", "bandwidth").judge(result(a=SHORT)) == ("96% of the read bandwidth", "yes")
    assert target("prompt of 512, 2B Q4_0", "peak").judge(result(a=SHORT)) == ("48% of the dot-product peak", "no")


def test_unmeasured_targets_say_so() -> None:
    assert {t.judge(result())[1] for t in targets()} == {"not measured"}
    alone = case("2b-Q4_0", "short", [{"limits": {"read": 1.0, "dot": 1.0}, "ours": {"pp512": 1.0, "tg64": 1.0}}])
    assert target("decode, 2B Q4_0", "llama.cpp").judge(result(a=alone)) == ("", "not measured")


def test_one_of_two_checks_suffices() -> None:
    work = target("decode with AVX2 only, 2B Q4_0")
    assert work.asked == "≥ 1.30x llama.cpp or ≥ 85% of the read bandwidth"
    bound_by_memory = case("2b-Q4_0", "short", [speed(24, 20)], isa="avx2", peer="llama.cpp-avx2")
    assert work.judge(result(a=bound_by_memory)) == ("1.20x llama.cpp, 96% of the read bandwidth", "yes")
    neither = case("2b-Q4_0", "short", [speed(20, 20)], isa="avx2", peer="llama.cpp-avx2")
    assert work.judge(result(a=neither))[1] == "no"


def test_steps_are_judged_by_one_row() -> None:
    steps = {f"rows{n}": t for n, t in ((1, 0.04), (2, 0.044), (4, 0.05), (8, 0.07), (16, 0.11))}
    rows = case("2b-Q8_0", "rows", [{"limits": {}, "ours": steps, "peer": {}}])
    judged = {n: target(f"a step of {n} rows, 2B Q8_0").judge(result(a=rows))[1] for n in (2, 4, 8, 16)}
    assert judged == {2: "yes", 4: "yes", 8: "no", 16: "no"}


def test_memory_is_counted_beside_file_and_cache() -> None:
    start = case("270m-Q4_K_M", "start", [{"ours": {"peak": 420e6, "file": 250e6, "anonymous": 90e6}}])
    assert target("memory at first token, 270M").judge(result(a=start)) == ("120 MB beside file and cache", "no")


def test_a_case_is_found_by_what_it_is() -> None:
    """The one with most threads, on no other instruction set, and not the one beside transformers."""
    one, other = SHORT | {"threads": 1}, SHORT | {"peer": "transformers"}
    assert find(result(a=one, b=SHORT, c=other, d=SHORT | {"isa": "avx2"}), "2b-Q4_0", "short") is SHORT
    assert find(result(), "2b-Q4_0", "short") is None


# ---- Markdown ----------------------------------------------------------------------------------------------------


def test_the_compact_table() -> None:
    everything = result(
        a=SHORT, b=case("270m-Q4_K_M", "short", [speed(140, 70)]), c=SHORT | {"threads": 1}, d=SHORT | {"isa": "avx2"}
    )
    lines = tables.compact(everything).splitlines()
    assert lines[2] == "| Model 270m-Q4_K_M | 1400 | 700 | 2.00 | 280% | 140 | 70.0 | 2.00 | 560% |"
    assert lines[3] == "| Model 2b-Q4_0 | 240 | 100 | 2.00 | 48% | 24.0 | 10.0 | 2.00 | 96% |"
    assert lines[4] == ""
    assert lines[5] == "Measured 2030-01-02 on A CPU, 2 cores, 24 GiB, Linux x86_64."
    assert lines[7].startswith("Prompts of 512 tokens; ") and len(lines) == 8
    everything["machine"]["virtual"] = True
    assert "Linux x86_64 (a virtual machine: ratios count" in tables.compact(everything)


def test_cases_are_shown_in_the_order_of_the_matrix() -> None:
    cases = {"2b-Q4_0/long/t2": SHORT | {"title": "2"}, "other": SHORT | {"title": "3"}, "2b-Q4_0/short/t2": SHORT}
    shown = [line for line in tables.full(result(**cases)).splitlines() if "| pp512 |" in line]
    assert [line.split(",")[0] for line in shown] == ["| Model 2b-Q4_0", "| 2", "| 3"]


def test_the_full_tables_show_every_case_and_reason() -> None:
    start = case("2b-Q4_0", "start", [{"ours": {"first_token": 0.5, "cold": 18.0}, "peer": {"first_token": 2.0}}])
    noted = SHORT | {"notes": ["llama.cpp without its repacking"], "isa": "avx2"}
    shown = tables.full(result(a=SHORT, b=start, c=noted) | {"skipped": {"27b": "no file\n there."}})
    assert "| Model 2b-Q4_0, 2 threads | pp512 | 240 | 100 | 2.00 (1.50 to 2.40) | 48% |" in shown
    assert "| Model 2b-Q4_0, 2 threads, AVX2 only | tg64 | 24.0 | 10.0 | 2.00 (1.50 to 2.40) | 96% |" in shown
    assert "| Model 2b-Q4_0, 2 threads | 0.50 s | 2.00 s |  | 18.00 s |  |  |  |  |" in shown
    assert "* c: llama.cpp without its repacking.\n* 27b was skipped: no file there.\n" in shown


def test_every_machine_has_a_table_and_one_sentence_says_how() -> None:
    one, other = result(a=SHORT), result(a=SHORT)
    other["machine"] = {**other["machine"], "cpu": "Another"}
    text = tables.compact(one, other)
    assert text.count("| Model 2b-Q4_0 |") == 2 and text.count("Prompts of 512 tokens") == 1
    assert "on A CPU" in text and "on Another" in text
    assert "## Another\n" in tables.full(one, other) and "## A CPU\n" not in tables.full(one, other)


def test_tables_go_between_the_markers() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.filled(text, "new\n") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="there is no <!-- bench:begin -->"):
        report.filled("text", "new\n")


def test_the_documents_show_the_stored_results() -> None:
    for path, generated in report.documents(report.stored()).items():
        text = path.read_text("utf-8")
        assert report.filled(text, generated) == text, f"{path.name} is not generated from bench/results"


# ---- comparison --------------------------------------------------------------------------------------------------


def test_a_gain_beyond_the_spread() -> None:
    after = case("2b-Q4_0", "short", [speed(40, 10), speed(60, 20), speed(48, 10)])
    prompt, generation = changes(result(a=SHORT), result(a=after))
    assert (generation.ours, generation.peer, generation.corrected) == (2.0, 1.0, 2.0)
    assert (prompt.verdict, generation.verdict) == ("better", "better")


def test_a_slower_machine_is_no_loss() -> None:
    """Everything takes twice as long, the peer too: ours less the drift is as before."""
    after = case("2b-Q4_0", "short", [speed(10, 5), speed(15, 10), speed(12, 5)])
    change = list(changes(result(a=SHORT), result(a=after)))[1]
    assert (change.ours, change.peer, change.corrected, change.verdict) == (0.5, 0.5, 1.0, "no")


def test_times_are_better_when_shorter() -> None:
    before, after = (case("2b-Q4_0", "rows", [{"limits": {}, "ours": {"rows2": t}}] * 3) for t in (0.04, 0.02))
    (change,) = changes(result(a=before), result(a=after))
    assert (change.ours, change.peer, change.corrected, change.verdict) == (2.0, None, 2.0, "better")
    assert rendered([change]).splitlines()[2] == "| a | rows2 | 0.04 | 0.02 | 2.000 |  | 2.000 | better |"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "better"),
        ([1.3, 1.4, 1.5], [1.0, 1.1, 1.2], "worse"),
        ([1.0, 1.1, 1.4], [1.3, 1.4, 1.5], "no"),  # one round of before is among those of after
        ([1.0, 1.0, 1.0], [1.004, 1.004, 1.004], "no"),
        ([1.0, 1.1], [2.0, 2.1, 2.2], "too few rounds"),
    ],
)
def test_verdicts(before: list[float], after: list[float], said: str) -> None:
    assert verdict(before, after) == said


def test_only_what_both_have_is_compared() -> None:
    assert not list(changes(result(a=SHORT), result(b=SHORT)))
    fewer = case("2b-Q4_0", "short", [{"limits": {}, "ours": {"tg64": 20.0}}])
    assert [change.measure for change in changes(result(a=SHORT), result(a=fewer))] == ["tg64"]
