"""The tables of docs/performance.md: they are what is stored, and they say what was measured."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from bench import performance
from bench.performance import asked_for, filled, generated, merged

PART = {"count": 1, "best_us": 1.0, "kv_bytes": 0, "gb_per_s": 0.0, "gmac_per_s": 0.0, "macs": 0, "weight_bytes": 0}
PRODUCT = {"label": "matmul ffn_down", "formats": ["Q4_K", "Q6_K"], "weight_bytes": 3_000_000, "macs": 8_000_000}
PROFILE: dict[str, Any] = {
    "n_depth": 0, "cpu_info": "A CPU", "isa": "avx2", "n_threads": 3, "repetitions": 7,
    "decode": {
        "whole_us": 100.0, "rows": 1,
        "parts": [
            PART | PRODUCT | {"us": 75.0, "share": 0.75, "gb_per_s": 40.0},
            PART | {"label": "add", "formats": [], "us": 25.0, "share": 0.25},
        ],
    },
    "prefill": {
        "whole_us": 2000.0, "rows": 8,
        "parts": [PART | PRODUCT | {"us": 1600.0, "share": 0.8, "gmac_per_s": 5.0, "gb_per_s": 1.9}],
    },
    "outside": {"share": 0.02, "threads_us": 5.0, "sampling_us": 6.0, "detokenizing_us": 7.0, "python_us": 8.0},
}  # fmt: skip
ENTRY = {
    "name": "A model", "date": "2030-01-02", "profile": PROFILE,
    "limits": {"read_bytes_per_s": 60e9, "dot_macs_per_s": 10e9},
}  # fmt: skip


def at_depth(depth: int, name: str = "A model") -> dict[str, Any]:
    entry = copy.deepcopy(ENTRY) | {"name": name}
    entry["profile"]["n_depth"] = depth
    return entry


def test_the_document_shows_what_is_stored() -> None:
    entries = json.loads(performance.RESULT.read_text("utf-8"))
    text = performance.DOCUMENT.read_text("utf-8")
    assert filled(text, generated(entries)) == text, "`python bench/performance.py` rewrites the tables"
    assert len(re.findall("^### ", text, re.MULTILINE)) == len(entries) > 0


def test_a_table_has_every_part_and_the_limits_beside_the_whole() -> None:
    text = generated([ENTRY])
    assert "### A model\n" in text and "chunk of 8, ms" in text
    assert "| matmul ffn_down (Q4_K, Q6_K) | 75 | 75.0% | 40.0 | 1.6 | 80.0% | 5 |\n" in text
    assert "| add | 25 | 25.0% |  |  |  |  |\n" in text
    assert "0.10 ms in the program, 30.0 GB/s" in text and "60.0 GB/s beside it (50%)" in text
    assert "2.0 ms, 250 us a token; its products 5 GMAC/s, 50% of the 10 " in text
    assert "2.0%: waking the threads 5 us, sampling 6, detokenizing 7, Python 8." in text
    assert "(2030-01-02, A CPU, avx2, 3 threads, medians of 7.)" in text


def test_depth_is_in_the_title() -> None:
    assert "### A model, after 4096 tokens\n" in generated([at_depth(4096)])


def test_a_new_measurement_takes_the_place_of_the_old_one() -> None:
    old = [at_depth(0), at_depth(512), at_depth(0, "B")]
    new = [at_depth(512) | {"date": "2031-01-01"}, at_depth(9)]
    assert merged(old, new) == [old[0], new[0], old[2], new[1]]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("2B, Q4_0=/a/b.gguf", ("2B, Q4_0", "/a/b.gguf", 0)),
        ("2B=/a/b.gguf@4096", ("2B", "/a/b.gguf", 4096)),
        ("/a/b.gguf", ("b", "/a/b.gguf", 0)),
        ("x=/a@b/c.gguf", ("x", "/a@b/c.gguf", 0)),
    ],
)
def test_arguments(argument: str, expected: tuple[str, str, int]) -> None:
    assert asked_for(argument) == expected


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="profile:begin"):
        filled("no markers", "tables")
    assert filled("a <!-- profile:begin -->old<!-- profile:end --> z", "new") == (
        "a <!-- profile:begin -->\nnew<!-- profile:end --> z"
    )


@pytest.mark.parametrize(("change", "status"), [("", 0), (" ", 1)])
def test_check_tells_by_its_status(change: str, status: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "RESULT", tmp_path / "profile.json")
    monkeypatch.setattr(performance, "DOCUMENT", tmp_path / "performance.md")
    performance.RESULT.write_text(json.dumps([ENTRY]))
    performance.DOCUMENT.write_text(f"{performance.BEGIN}{performance.END}")
    monkeypatch.setattr("sys.argv", ["performance.py"])
    assert performance.main() == 0
    performance.DOCUMENT.write_text(performance.DOCUMENT.read_text().replace("###", f"###{change}"))
    monkeypatch.setattr("sys.argv", ["performance.py", "--check"])
    before = performance.DOCUMENT.read_text()
    assert performance.main() == status and performance.DOCUMENT.read_text() == before
