"""Results: lines of JSON, the figures computed from them, targets, tables, comparison. No measuring."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import compare, report
from bench.compare import changes, verdict
from bench.profile_tables import profiles
from bench.results import FORMAT, Line, Result, leads, seconds_a_round, shares, stored
from bench.tables import compact, full
from bench.targets import Target, targets

SHORT = "2b-Q4_0/short/t2"
FACTS = {"decode_bytes": 2e9, "prompt_macs": 2e9, "kv_bytes_at_start": 50e6, "token_bytes": 260e6}
Round = dict[str, dict[str, float]]


def header(cpu: str = "A CPU", **other: object) -> Line:
    machine = {
        "cpu": cpu, "target": "zen", "caches": {"l1": 48 << 10}, "isa": "avx2", "cores": 2,
        "memory_bytes": 24 << 30, "system": "Linux x86_64", "virtual": False,
    }  # fmt: skip
    run = {"date": "2030-01-02", "commit": "abc", "machine": machine, "software": {"python": "3.11"}, "peers": ["P 1"]}
    return {"format": FORMAT} | run | other


def lines(name: str, *rounds: Round) -> list[Line]:
    """Of a case, with the facts of its model."""
    facts: list[Round] = [{"model": FACTS}]
    return [
        {"case": name, "side": side, "measure": measure, "round": number, "value": value}
        for part in (facts, rounds)
        for number, each in enumerate(part)
        for side, figures in each.items()
        for measure, value in figures.items()
    ]


def result(**cases: list[Round]) -> Result:
    return Result([header(), *(line for name, rounds in cases.items() for line in lines(name, *rounds))])


def speed(ours: float, peer: float, read: float = 50e9, dot: float = 1e12) -> Round:
    """A round of a short case in which prompts are ten times as fast as generation."""
    return {
        "limits": {"read": read, "dot": dot},
        "ours": {"pp512": 10 * ours, "tg64": ours},
        "peer": {"pp512": 10 * peer, "tg64": peer},
    }


THREE = [speed(20, 10), speed(30, 20), speed(24, 10)]


def seen(found: Result, work: str, asked: str = "") -> tuple[str, str]:
    return target(work, asked).judge(found.cases())


def target(work: str, asked: str = "") -> Target:
    return next(t for t in targets() if t.work == work and asked in t.asked)


# ---- files and figures ---------------------------------------------------------------------------------------------


def test_a_saved_result_loads(tmp_path: Path) -> None:
    result(**{SHORT: THREE}).save(tmp_path / "r.jsonl")
    assert Result.load(tmp_path / "r.jsonl") == result(**{SHORT: THREE})
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', json.dumps({"models": []})])
def test_a_result_of_another_format_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(ValueError, match=r"old\.json: not a result of bench/side_by_side\.py in format 3"):
        Result.load(tmp_path / "old.json")
    for program, options in ((compare, [tmp_path / "old.json"] * 2), (report, ["--print", tmp_path / "old.json"])):
        monkeypatch.setattr("sys.argv", ["program", *map(str, options)])
        with pytest.raises(SystemExit):
            program.main()
        assert "old.json: not a result" in capsys.readouterr().err


def test_figures_are_taken_round_by_round() -> None:
    of = result(**{SHORT: THREE}).cases()[SHORT]
    assert leads(of, "tg64") == [2.0, 1.5, 2.4]
    drifting = result(**{SHORT: [speed(20, 10), speed(20, 10, read=80e9, dot=8e11)]}).cases()[SHORT]
    assert shares(drifting, "tg64") == [0.8, 0.5]
    assert shares(drifting, "pp512") == [0.4, 0.5]


def test_rounds_are_joined_by_their_number() -> None:
    """A round that lacks a side is no round of a ratio; its neighbours keep their own partner."""
    of = result(**{SHORT: [speed(20, 10), {"ours": {"tg64": 99.0}}, speed(30, 10)]}).cases()[SHORT]
    assert leads(of, "tg64") == [2.0, 3.0]
    assert list(of["ours", "tg64"]) == [0, 1, 2]


def test_what_is_measured_several_times_in_a_round_is_the_mean() -> None:
    found = result(**{SHORT: [speed(20, 10, read=40e9)]})
    found.lines += [{"case": SHORT, "side": "limits", "measure": "read", "round": 0, "value": 60e9}]
    assert shares(found.cases()[SHORT], "tg64") == [0.8]


def test_a_shorter_time_leads() -> None:
    start = result(**{"2b-Q4_0/start/t2": [{"ours": {"first_token": 0.5}, "peer": {"first_token": 2.0}}]})
    assert leads(start.cases()["2b-Q4_0/start/t2"], "first_token") == [4.0]


def test_seconds_of_a_round_are_known_from_the_stored_results() -> None:
    assert 5 < seconds_a_round()[SHORT] < 60


# ---- targets -------------------------------------------------------------------------------------------------------


def test_the_median_is_judged() -> None:
    found = result(**{SHORT: THREE})
    assert seen(found, "decode, 2B Q4_0", "llama.cpp") == ("2.00x llama.cpp", "yes")
    assert seen(found, "decode, 2B Q4_0", "bandwidth") == ("96% of the read bandwidth", "yes")
    assert seen(found, "prompt of 512, 2B Q4_0", "peak") == ("48% of the dot-product peak", "no")


def test_unmeasured_targets_say_so() -> None:
    assert {t.judge({})[1] for t in targets()} == {"not measured"}
    alone = result(**{SHORT: [{"limits": {"read": 1.0, "dot": 1.0}, "ours": {"pp512": 1.0, "tg64": 1.0}}]})
    assert seen(alone, "decode, 2B Q4_0", "llama.cpp") == ("", "not measured")


def test_one_of_two_bounds_suffices() -> None:
    work = "decode with AVX2 only, 2B Q4_0"
    assert target(work).asked == "≥ 1.30x llama.cpp or ≥ 85% of the read bandwidth"
    bound_by_memory = result(**{f"{SHORT}/avx2": [speed(24, 20)]})
    assert seen(bound_by_memory, work) == ("1.20x llama.cpp, 96% of the read bandwidth", "yes")
    assert seen(result(**{f"{SHORT}/avx2": [speed(20, 20)]}), work)[1] == "no"


def test_steps_are_judged_by_one_row_and_memory_beside_file_and_cache() -> None:
    steps = {f"rows{n}": t for n, t in ((1, 0.04), (2, 0.044), (4, 0.05), (8, 0.07), (16, 0.11))}
    memory = {"peak": 420e6, "file": 250e6, "anonymous": 90e6}
    text = {"step": 0.04, "answer": 0.041}
    cases = {"2b-Q8_0/rows/t2": steps, "270m-Q4_K_M/start/t2": memory, "2b-Q4_0/overhead/t2": text}
    cases["g4-e2b-Q4_0/start/t2"] = memory
    found = result(**{name: [{"ours": figures}] for name, figures in cases.items()})
    assert [seen(found, f"a step of {n} rows, 2B Q8_0")[1] for n in (2, 4, 8, 16)] == ["yes", "yes", "no", "no"]
    assert seen(found, "memory at first token, 270M") == ("120 MB beside file and cache", "no")
    looked_up = "memory at first token, Gemma 4 E2B shape, Q4_0"
    assert seen(found, looked_up) == ("110 MB beside weights read and cache", "yes")
    assert seen(found, "sampling, text and Python, 2B Q4_0") == ("2.5% of a step", "yes")


def test_a_case_is_found_by_what_it_is() -> None:
    """The one with most threads, on no other instruction set, and not the one beside transformers."""
    names = ["2b-Q4_0/short/t1", SHORT, f"{SHORT}/avx2", f"{SHORT}/transformers"]
    found = target("decode, 2B Q4_0").find(result(**dict.fromkeys(names, THREE)).cases())
    assert found and found.case.name == SHORT


# ---- tables --------------------------------------------------------------------------------------------------------


def test_the_compact_table() -> None:
    """Smallest model first; without other instruction sets and fewer threads."""
    names = {"g4-e2b-Q4_0/short/t2": THREE, SHORT: THREE, "270m-Q4_K_M/short/t2": [speed(140, 70)]}
    names |= {"2b-Q4_0/short/t1": THREE, f"{SHORT}/avx2": THREE}
    shown = compact([result(**names)]).splitlines()
    assert shown[2] == "| Gemma 3 270M, Q4_K_M | 1400 | 700 | 2.00 | 280% | 140 | 70.0 | 2.00 | 560% |"
    assert shown[3] == "| Gemma 2 2B shape, Q4_0 | 240 | 100 | 2.00 | 48% | 24.0 | 10.0 | 2.00 | 96% |"
    assert shown[4].startswith("| Gemma 4 E2B shape, Q4_0 |") and shown[5] == ""
    where = "A CPU (zen, 48 KB of first-level cache), 2 cores, 24 GiB, Linux x86_64"
    assert shown[6] == f"Measured 2030-01-02 on {where}."
    assert shown[8].startswith("Prompts of 512 tokens; ") and len(shown) == 9


def test_the_full_tables_show_every_case_and_reason() -> None:
    start: Round = {"ours": {"first_token": 0.5, "cold": 18.0, "peak": 3e8}, "peer": {"first_token": 2.0}}
    times, limits = {"rows1": 0.04, "rows8": 0.06}, {"read": 5e10, "dot": 1e12}
    rows: Round = {"limits": limits, "ours": times, "peer": {"rows1": 0.1}}
    busy: Round = {"ours": {"busy0": 9.0, "busy1": 8.0}, "peer": {"busy0": 3.0, "busy1": 1.0}}
    others = {"2b-Q4_0/rows/t2": [rows], "2b-Q4_0/start/t2": [start], "270m-Q4_K_M/busy/t1": [busy]}
    found = result(**others, **{f"{SHORT}/avx2": THREE, SHORT: THREE})
    found.lines += [{"case": "c", "note": "no repacking"}, {"case": "27b", "skipped": "no file\n there."}]
    found.lines += [header(commit="def", date="2030-01-03", peers=["P 1", "T 2"])]
    text = full([found])
    assert text.startswith("Measured 2030-01-02 to 2030-01-03 on ")
    assert "edge-gemma at abc, def, python 3.11; P 1; T 2.\n" in text
    shown = [line for line in text.splitlines() if "| pp512 |" in line or "| tg64 |" in line]
    assert shown == [
        "| Gemma 2 2B shape, Q4_0, 2 threads | pp512 | 240 | 100 | 2.00 (1.50 to 2.40) | 48% |",
        "| Gemma 2 2B shape, Q4_0, 2 threads, AVX2 only | pp512 | 240 | 100 | 2.00 (1.50 to 2.40) | 48% |",
        "| Gemma 2 2B shape, Q4_0, 2 threads | tg64 | 24.0 | 10.0 | 2.00 (1.50 to 2.40) | 96% |",
        "| Gemma 2 2B shape, Q4_0, 2 threads, AVX2 only | tg64 | 24.0 | 10.0 | 2.00 (1.50 to 2.40) | 96% |",
    ]
    assert "| Gemma 2 2B shape, Q4_0, 2 threads | 0.50 s | 2.00 s |  | 18.00 s | 300 MB |  |  |  |" in text
    assert "| Gemma 2 2B shape, Q4_0, 2 threads | 40.0 ms |  |  | 1.50x |  | 100.0 ms |  |  |  |  |" in text
    assert "| Gemma 3 270M, Q4_K_M, 1 thread | busy1 | 8.0 | 1.0 | 8.00 (8.00 to 8.00) |" in text
    assert "| Gemma 2 2B shape, Q4_0, 2 threads, rows | 50 to 50 | 1000 to 1000 |" in text
    assert "* c: no repacking.\n* 27b was skipped: no file there.\n" in text


def test_every_machine_has_a_table_and_one_sentence_says_how() -> None:
    one, other = (Result([header(cpu), *lines(SHORT, *THREE)]) for cpu in ("A CPU", "Another"))
    text = compact([one, other])
    assert text.count("| Gemma 2 2B shape, Q4_0 |") == 2 and text.count("Prompts of 512 tokens") == 1
    assert "## Another (zen" in full([one, other]) and "## A CPU" not in full([one, other])


def test_a_profile_has_every_operation_and_the_limits_beside_the_whole() -> None:
    product, outside = "matmul ffn_down (Q4_K, Q6_K)", ("program", "threads", "sampling", "detokenizing", "python")
    ours = {
        "decode/program/whole_us": 100.0, "prefill/program/whole_us": 2000.0, "prefill/program/rows": 8.0,
        f"decode/{product}/us": 75.0, f"decode/{product}/bytes": 3e6, f"decode/{product}/macs": 8e6,
        "decode/add/us": 25.0, "decode/add/bytes": 0.0, "decode/add/macs": 0.0,
        f"prefill/{product}/us": 1600.0, f"prefill/{product}/bytes": 3e6, f"prefill/{product}/macs": 8e6,
        **{f"outside/{name}/each_us": us for name, us in zip(outside, (1274.0, 5.0, 6.0, 7.0, 8.0), strict=True)},
    }  # fmt: skip
    text = profiles([result(**{"2b-Q4_0/profile-long/t2": [{"ours": ours, "limits": {"read": 60e9, "dot": 10e9}}]})])
    assert "### Gemma 2 2B shape, Q4_0, after 4096 tokens\n" in text and "chunk of 8, ms" in text
    assert f"| {product} | 75 | 75.0% | 40.0 | 1.6 | 100.0% | 5 |\n" in text
    assert "| add | 25 | 25.0% |  |  |  |  |\n" in text
    assert "0.10 ms in the program, 30.0 GB/s" in text and "60.0 GB/s beside it (50%)" in text
    assert "2.0 ms, 250 us a token; its products 5 GMAC/s, 50% of the 10 " in text
    assert "2.0%: waking the threads 5 us, sampling 6, detokenizing 7, Python 8." in text
    assert "(2030-01-02, A CPU, avx2, 2 threads, medians of 5.)" in text


def test_the_documents_show_the_stored_results() -> None:
    for name, generate in report.DOCUMENTS.items():
        text = (report.ROOT / name).read_text("utf-8")
        assert report.filled(text, generate(stored())) == text, f"{name}: `python bench/report.py` makes the tables"


def test_check_tells_by_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "DOCUMENTS", {"README.md": compact})
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for options, status in (["--check"], 1), ([], 0), (["--check"], 0):
        before = (tmp_path / "README.md").read_text()
        monkeypatch.setattr("sys.argv", ["report.py", *options])
        assert report.main() == status
        assert ((tmp_path / "README.md").read_text() == before) is bool(options)
    assert before == f"before\n{report.BEGIN}\n{compact(stored())}{report.END}\nafter\n"
    with pytest.raises(ValueError, match="there is no <!-- bench:begin -->"):
        report.filled("text", "new\n")


# ---- comparison ----------------------------------------------------------------------------------------------------


def change(before: list[Round], after: list[Round], measure: str, case: str = SHORT) -> list[str]:
    """The row of a measure, without its names."""
    rows = changes(result(**{case: before}), result(**{case: after}))
    return next(row[2:] for row in rows if row[:2] == [case, measure])


def test_a_gain_beyond_the_spread() -> None:
    after = [speed(40, 10), speed(60, 20), speed(48, 10)]
    assert change(THREE, after, "tg64") == ["24", "48", "2.000", "1.000", "2.000", "better"]


def test_a_slower_machine_is_no_loss() -> None:
    """Everything takes twice as long, the peer too: ours less the drift is as before."""
    after = [speed(10, 5), speed(15, 10), speed(12, 5)]
    assert change(THREE, after, "tg64") == ["24", "12", "0.500", "0.500", "1.000", "no"]


def test_times_are_better_when_shorter() -> None:
    before, after = ([{"ours": {"rows2": t}}] * 3 for t in (0.04, 0.02))
    row = change(before, after, "rows2", "2b-Q4_0/rows/t2")
    assert row == ["0.04", "0.02", "2.000", "", "2.000", "better"]


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


def test_only_what_both_have_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = result(**{SHORT: [{"ours": {"tg64": 20.0}}]})
    assert [row[1] for row in changes(result(**{SHORT: THREE}), fewer)] == ["tg64"]
    for name, case in ("a", SHORT), ("b", f"{SHORT}/avx2"):
        result(**{case: THREE}).save(tmp_path / name)
    for other, status in ("a", 0), ("b", 1):
        monkeypatch.setattr(sys, "argv", ["compare.py", str(tmp_path / "a"), str(tmp_path / other)])
        assert compare.main() == status
    captured = capsys.readouterr()
    assert f"| {SHORT} | tg64 | 24 | 24 | 1.000 | 1.000 | 1.000 | no |" in captured.out
    assert "no case in common" in captured.err
