"""What the documents name is there: files, tests, links, and the lines that they quote."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
EVERY = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
FOLDERS = ("edge_gemma", "kernels", "quantize", "tests", "bench", "tools", "docs", ".ci")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
NAMES = [f"/{path.relative_to(ROOT).as_posix()}" for path in FILES]
LINES = {
    line.strip().rstrip(",") for path in FILES if path.suffix == ".py" for line in path.read_text("utf-8").splitlines()
}


def text_of(document: Path) -> str:
    return document.read_text("utf-8")


def is_there(name: str) -> bool:
    """Whether there is a file of that path, or with that end of its path."""
    return any(path.endswith(f"/{name}") for path in NAMES) or (ROOT / name).exists()


@EVERY
def test_files_that_are_named_are_there(document: Path) -> None:
    names = re.findall(r"`([\w./-]+\.(?:py|sh|md))[`:]", text_of(document))
    assert [name for name in names if not is_there(name)] == []


@EVERY
def test_folders_that_are_named_are_there(document: Path) -> None:
    names = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w/]*/)`", text_of(document))
    assert [name for name in names if not (ROOT / name).is_dir()] == []


@EVERY
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        path, _, _ = target.partition("#")
        assert target.startswith("https://") or (document.parent / path).exists(), target


@EVERY
def test_tests_that_are_named_are_there(document: Path) -> None:
    for name in re.findall(r"::(test_\w+)", text_of(document)):
        assert any(line.startswith(f"def {name}(") for line in LINES), name


def test_lines_that_are_quoted_are_those_of_the_code() -> None:
    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / "docs/adding.md"), re.DOTALL)
    quoted = [line.strip().rstrip(",") for block in blocks for line in block.splitlines()]
    assert len(quoted) > 20
    assert set(quoted) - LINES == set()
