"""Two quantizers at a time, of one target or beside each other: neither takes away what the other one uses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Thread

import pytest

from edge_gemma.atomic_file import AtomicFile
from edge_gemma.errors import OutputError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from edge_gemma.quantize.imatrix import ImportanceMatrix
from edge_gemma.quantize.output.provenance import UNKNOWN, Quality, source_copy
from tests.quantize import tiny_checkpoint as tiny

ROOT = Path(__file__).resolve().parents[2]
CODE = """
    import sys
    from pathlib import Path
    import numpy as np
    from edge_gemma.quantize import quantize
    from edge_gemma.quantize.imatrix import ImportanceMatrix
    def calibrate(model):
        print(model.name, flush=True)
        input()
        assert model.read_bytes()[:4] == b"GGUF"
        return ImportanceMatrix({"blk.0.attn_q.weight": np.ones(64, np.float32)}, (), 0)
    quantize(sys.argv[1], sys.argv[2], "Q4_1", calibrate=calibrate, force=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "hf", "gemma", num_hidden_layers=1)
    return tmp_path / "hf"


def calibrating(folder: Path, out: Path) -> subprocess.Popen[str]:
    """A process that waits, in the middle of calibrating, for a line."""
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(folder), str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def reached(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("other", ["out.gguf", "another.gguf"])
def test_two_processes_that_calibrate(folder: Path, tmp_path: Path, other: str) -> None:
    with calibrating(folder, tmp_path / "out.gguf") as first:
        copy = reached(first)
        with calibrating(folder, tmp_path / other) as second:
            assert {copy, reached(second)} < set(names(tmp_path))
            assert second.communicate("\n", timeout=60) and second.returncode == 0
        assert copy in names(tmp_path)
        assert first.communicate("\n", timeout=60) and first.returncode == 0
    assert names(tmp_path) == sorted({"hf", "out.gguf", other})
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / other).read_bytes()


def test_a_killed_one_is_cleared_away_by_the_next_of_the_name_only(folder: Path, tmp_path: Path) -> None:
    with calibrating(folder, tmp_path / "out.gguf") as process:
        copy = reached(process)
        process.kill()
    left = f".{copy}.partial-{process.pid}"  # had it been killed earlier
    (tmp_path / left).touch()
    quantize(folder, tmp_path / "another.gguf")
    assert {copy, left} < set(names(tmp_path))
    quantize(folder, tmp_path / "out.gguf")
    assert names(tmp_path) == ["another.gguf", "hf", "out.gguf"]


def test_a_second_thread_is_told(folder: Path, tmp_path: Path) -> None:
    """Before it does any work; and another target is no matter."""
    out, errors = tmp_path / "out.gguf", []

    def second() -> None:
        for target in (out, tmp_path / "hf/../out.gguf", tmp_path / "another.gguf"):
            try:
                quantize(folder, target, force=True)
            except FileExistsError as error:
                errors.append(str(error))

    def calibrate(model: Path) -> ImportanceMatrix:
        thread = Thread(target=second)
        thread.start()
        thread.join()
        assert model == source_copy(out) and model.exists()
        raise OutputError("enough")

    with pytest.raises(OutputError, match="enough"):
        quantize(folder, out, calibrate=calibrate)
    assert errors == [f"{out} is being written by this process; wait for it, or name another output"] * 2
    assert names(tmp_path) == ["another.gguf", "hf"]
    quantize(folder, out)


def test_the_copy_to_compare_with_stays_too(folder: Path, tmp_path: Path) -> None:
    def compare(written: Path, source: Path) -> Quality:
        code = "import sys; from edge_gemma.quantize import quantize; quantize(*sys.argv[1:], force=True)"
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out.gguf")]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
        with GgufFile.open(written), GgufFile.open(source):
            return UNKNOWN

    quantize(folder, tmp_path / "out.gguf", compare=compare, force=True)
    assert names(tmp_path) == ["hf", "out.gguf"]


def test_a_partial_file_of_somebody_with_our_number(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "x", 1, force=False) as file:
        file.write(b"a")
        with pytest.raises(FileExistsError, match=r"x is being written, .* wait for it, or remove .*partial-"):
            AtomicFile(tmp_path / "x", 1, force=False).__enter__()
    assert (tmp_path / "x").read_bytes() == b"a"
