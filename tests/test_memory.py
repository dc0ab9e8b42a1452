"""Memory that the system does not have: what was asked for, how many bytes, and what takes less."""

from __future__ import annotations

import errno
import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_gemma import Gemma, MemoryBudgetError
from edge_gemma.commands import cli
from edge_gemma.engine import runner
from edge_gemma.errors import OutputError
from edge_gemma.gguf import file as gguf_file
from edge_gemma.graph import buffers, page_memory
from edge_gemma.memory import CHECKED, memory_for, require_memory
from tests.conftest import TinyGguf

ROOT = Path(__file__).parent.parent
REFUSALS = [OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError("Unable to allocate")]


def refused(error: Exception) -> Any:
    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise error

    return refuse


@pytest.fixture
def path(tiny_gguf: TinyGguf) -> Path:
    return tiny_gguf("gemma2-2b")


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize(
    ("kv_type", "advice"), [("q8_0", "$"), ("f16", ', or kv_type="q8_0"$'), ("f32", ', or kv_type="f16" or "q8_0"$')]
)
def test_no_memory_for_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kv_type: Any, advice: str
) -> None:
    """Pages come with the tokens; the model can be used as soon as there is memory again."""
    with Gemma(path, context=64, kv_type=kv_type) as model:
        with monkeypatch.context() as patch:
            patch.setattr(page_memory, "zeroed", refused(error))
            message = (
                rf"no memory for pages of the {kv_type} key-value cache, {page_memory.SLAB} bytes; open with a smaller "
                rf"context or fewer sequences{advice}"
            )
            with pytest.raises(MemoryBudgetError, match=message):
                model.logits([2, 3])
        assert model.logits([2, 3]).shape == (2, model.config.vocab_size)


def test_no_memory_for_buffers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "np", SimpleNamespace(zeros=refused(MemoryError()), uint8=np.uint8))
    with pytest.raises(
        MemoryBudgetError, match=r"a buffer of the model, \d+ bytes; open with a smaller chunk or fewer"
    ):
        Gemma(path)


def test_no_room_for_the_mapping(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(mmap=refused(REFUSALS[0]), ACCESS_READ=mmap.ACCESS_READ)
    monkeypatch.setattr(gguf_file, "mmap", fake)
    with pytest.raises(MemoryBudgetError, match=rf"mapping .*\.gguf, {path.stat().st_size} bytes; .*ulimit -v"):
        Gemma(path)


def test_other_errors_of_the_mapping_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(mmap=refused(OSError(errno.ENODEV, "No such device")), ACCESS_READ=mmap.ACCESS_READ)
    monkeypatch.setattr(gguf_file, "mmap", fake)
    with pytest.raises(OSError, match="No such device"):
        Gemma(path)


def test_no_memory_for_a_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_read_aligned", refused(MemoryError()))
    with pytest.raises(MemoryBudgetError, match=rf'a copy of .*, {path.stat().st_size} bytes; load="map" takes none'):
        Gemma(path, load="copy")


def test_a_copy_larger_than_what_is_free_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large.gguf").open("wb") as file:
        file.truncate(CHECKED)
    monkeypatch.setattr("edge_gemma.memory.available_memory", lambda: CHECKED - 1)
    monkeypatch.setattr(gguf_file, "_read_aligned", refused(AssertionError()))
    with pytest.raises(MemoryBudgetError, match=rf"{CHECKED} bytes are needed, {CHECKED - 1} are available"):
        gguf_file.GgufFile.open(tmp_path / "large.gguf", load="copy")


@pytest.mark.parametrize("call", ["logits", "generate"])
def test_no_memory_for_logits(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with Gemma(path, context=64) as model:
        rows = 3 if call == "logits" else 1
        expected = model.logits([2, 3, 4])
        with monkeypatch.context() as patch:
            patch.setattr(runner, "np", SimpleNamespace(**vars(np) | {"empty": refused(MemoryError())}))
            with pytest.raises(MemoryBudgetError, match=rf"logits for {rows} positions, \d+ bytes; "):
                getattr(model, call)([2, 3, 4])
        assert np.array_equal(model.logits([2, 3, 4]), expected)


def test_logits_larger_than_what_is_free_are_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_gemma.memory.CHECKED", 1000)
    with Gemma(path, context=64) as model:
        monkeypatch.setattr("edge_gemma.memory.available_memory", lambda: 4 * model.config.vocab_size)
        assert len(list(model.logits_chunks([2, 3], 1))) == 2
        with pytest.raises(MemoryBudgetError, match=r"logits for 2 positions: .*logits_chunks"):
            model.logits([2, 3])


def test_an_error_that_says_it_already_is_kept() -> None:
    with pytest.raises(MemoryBudgetError, match=r"^the inner one$"), memory_for("something", 5, "advice"):
        raise MemoryBudgetError("the inner one")


def test_little_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_gemma.memory.available_memory", refused(AssertionError()))
    require_memory("something", CHECKED - 1, "advice")


@pytest.mark.parametrize(
    ("error", "status"),
    [(error, 1) for error in (*REFUSALS, MemoryBudgetError("no room"))]
    + [(OSError(errno.ENOENT, "none"), 2), (OutputError(errno.ENOMEM, "no room"), 3)],
)
def test_no_memory_is_no_wrong_input(error: BaseException, status: int) -> None:
    assert cli.exit_status(error) == status
    if error in REFUSALS:
        assert cli.describe(error) == "out of memory"


LIMITED = """
import resource, sys
from edge_gemma.commands import cli
from edge_gemma.gguf import file
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
sys.exit(cli.main(["info", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of address space")
def test_a_limit_of_address_space(tmp_path: Path) -> None:
    with (tmp_path / "large.gguf").open("wb") as file:
        file.truncate(2**30)
    command = [sys.executable, "-c", LIMITED, tmp_path / "large.gguf"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "error: the system has no memory for mapping" in done.stderr and f"{2**30} bytes" in done.stderr
