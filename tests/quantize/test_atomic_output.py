"""The output appears complete or not at all; its bytes and the memory used depend on nothing but the source."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_gemma import atomic_file
from edge_gemma.commands import quantize as cli
from edge_gemma.errors import OutputError
from edge_gemma.quantize import convert, pipeline, quantize
from edge_gemma.quantize.checkpoint.safetensors import read_safetensors
from tests.quantize import tiny_checkpoint as tiny

ROOT = Path(__file__).resolve().parents[2]
POSIX = os.name == "posix"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "gemma-tiny"
    tiny.write_checkpoint(path)
    return path


def partials(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if ".partial-" in entry.name]


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_bytes_do_not_depend_on_threads_or_slabs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for threads, slab in ((1, 1 << 20), (2, 1 << 10), (4, 1 << 8), (3, 7)):
        monkeypatch.setattr(pipeline, "SLAB_VALUES", slab)
        quantize(folder, tmp_path / f"{threads}.gguf", threads=threads)
        seen.add((tmp_path / f"{threads}.gguf").read_bytes())
    assert len(seen) == 1


def test_bytes_do_not_depend_on_place_or_process(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    quantize(folder, tmp_path / "a.gguf", threads=1)
    code = """
        import sys
        from edge_gemma.quantize import quantize
        quantize(sys.argv[1], sys.argv[2], threads=2)
    """
    process = run_python(code, str(tmp_path / "elsewhere" / folder.name), str(tmp_path / "elsewhere/b.gguf"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "elsewhere/b.gguf").read_bytes()


def test_refusals(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="--force"):
        quantize(folder, out)
    assert out.read_bytes() == b"old"
    (tmp_path / "link.gguf").symlink_to(out)
    with pytest.raises(FileExistsError, match="symbolic link"):
        quantize(folder, tmp_path / "link.gguf", force=True)
    with pytest.raises(NotADirectoryError, match="create it first"):
        quantize(folder, tmp_path / "none" / "out.gguf")
    with pytest.raises(FileExistsError, match="not a regular file"):
        quantize(folder, tmp_path, force=True)
    assert partials(tmp_path) == []


def test_the_source_is_never_the_output(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "a.gguf", "F32")
    os.link(tmp_path / "a.gguf", tmp_path / "b.gguf")
    for name in ("a.gguf", "b.gguf"):
        with pytest.raises(FileExistsError, match="part of the source"):
            quantize(tmp_path / "a.gguf", tmp_path / name, force=True)
    with pytest.raises(FileExistsError, match="part of the source"):
        quantize(folder, folder / "model.safetensors", force=True)


def test_force_replaces(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    quantize(folder, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF" and partials(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_the_old_file(folder: Path, tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")

    def fail(done: int, total: int, name: str) -> None:
        assert len(partials(tmp_path)) == 1
        if done > total // 2:
            raise error

    with pytest.raises(type(error)):
        quantize(folder, out, force=True, progress=fail)
    assert out.read_bytes() == b"old" and partials(tmp_path) == []


def test_a_file_that_cannot_be_read_back_is_not_published(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(written: Path, target: Path) -> None:
        raise ValueError(written.name)

    monkeypatch.setattr(convert, "_verify", broken)
    with pytest.raises(ValueError, match=r"\.out\.gguf\.partial"):
        quantize(folder, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_file.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutputError, match="10 are free; make room there"):
        quantize(folder, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_while_more_is_written_is_not_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it once, to whoever syncs first: here in the background."""
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "told once")

    monkeypatch.setattr(atomic_file, "SYNC_BYTES", 4096)
    monkeypatch.setattr(atomic_file, "_sync_data", fail)
    with pytest.raises(OutputError, match=r"out\.gguf: Input/output error"):
        quantize(folder, tmp_path / "out.gguf")
    assert len(calls) == 1 and list(tmp_path.iterdir()) == []


def test_early_syncs_change_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(folder, tmp_path / "a.gguf")
    synced = []
    monkeypatch.setattr(atomic_file, "SYNC_BYTES", 1)
    monkeypatch.setattr(atomic_file, "_sync_data", synced.append)
    quantize(folder, tmp_path / "b.gguf")
    assert synced and (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.fixture
def alive() -> Iterator[int]:
    """Number of a process that runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")


def test_stale_partials_are_removed(folder: Path, tmp_path: Path, alive: int) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".out.gguf.partial-{pid}").write_bytes(b"left behind")
    kept = [f".out.gguf.partial-{alive}", f".other.gguf.partial-{dead.pid}"]
    for name in kept:
        (tmp_path / name).write_bytes(b"still written, or of another file")
    quantize(folder, tmp_path / "out.gguf")
    assert sorted(partials(tmp_path)) == sorted(kept)


def test_a_partial_older_than_the_process_of_its_number_is_stale(folder: Path, tmp_path: Path, alive: int) -> None:
    stale = tmp_path / f".out.gguf.partial-{alive}"
    stale.write_bytes(b"left behind by a process that had the number before")
    before = psutil.Process(alive).create_time() - 3600
    os.utime(stale, (before, before))
    quantize(folder, tmp_path / "out.gguf")
    assert partials(tmp_path) == []


SLOW = """
    import sys, time
    from edge_gemma.commands import quantize as cli
    from edge_gemma.quantize import convert
    def slow(*progress):
        print("working", flush=True)
        time.sleep(0.05)
    original = convert.quantize
    convert.quantize = lambda *a, **o: original(*a, **o | {"progress": slow})
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(not POSIX, reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_clean_up(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    process = run_python(SLOW, str(folder), str(out), "--force")
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "edge-gemma quantize: error: interrupted\n"
    assert out.read_bytes() == b"old" and partials(tmp_path) == []


@pytest.mark.skipif(not POSIX, reason="resource limits of POSIX")
def test_a_disk_that_takes_no_more(folder: Path, tmp_path: Path) -> None:
    code = """
        import resource, sys
        from edge_gemma.commands import quantize as cli
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        sys.exit(cli.main(sys.argv[1:]))
    """
    process = run_python(code, str(folder), str(tmp_path / "out.gguf"), "--quiet")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert (
        errors.startswith("edge-gemma quantize: error: ")
        and "File too large; make room" in errors
        and errors.count("\n") == 1
    )
    assert list(tmp_path.iterdir()) == []


def sparse_checkpoint(folder: Path) -> None:
    """A model of 0.9 GB that takes no room on the disk: its weights are a hole."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 2048, "head_dim": 256}
    tiny.write_checkpoint(folder, "gemma", intermediate_size=64, **sizes)
    config = tiny.make_config("gemma", intermediate_size=32768, **sizes)
    (folder / "config.json").write_text(json.dumps(config))
    offset, header = 0, {}
    for name, tensor in read_safetensors(folder / "model.safetensors").items():
        shape = [32768 if n == 64 else n for n in tensor.shape]
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    tiny.write_raw_safetensors(folder / "model.safetensors", json.dumps(header).encode(), b"")
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + offset)


def anonymous_megabytes(process: subprocess.Popen[str]) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) >> 10 if found else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """With matrices of 268 MB, and an adapter for it."""
    sparse_checkpoint(tmp_path / "hf")
    name = "model.layers.0.mlp.up_proj.lora_"
    factors = {"A": np.zeros((16, 2048), np.float32), "B": np.zeros((32768, 16), np.float32)}
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    tensors = {f"{name}{factor}.weight": values for factor, values in factors.items()}
    tiny.write_safetensors(tmp_path / "lora/adapter_model.safetensors", tensors)
    arguments = [str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--lora", str(tmp_path / "lora"), "--quiet"]
    process = run_python(
        "import sys; from edge_gemma.commands import quantize as cli; sys.exit(cli.main(sys.argv[1:]))", *arguments
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_megabytes(process))
        time.sleep(0.01)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "out.gguf").stat().st_size > 110e6
    assert 0 < peak < 400


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.gguf")
    assert cli.main([str(folder), out, "--type", "q8_0"]) == 0
    printed = capsys.readouterr()
    assert "bits a weight" in printed.out and "MB/s" in printed.err
    assert cli.main([str(folder), out]) == 2
    assert capsys.readouterr().err.startswith("edge-gemma quantize: error: ")
    assert cli.main([str(folder), out, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit) as caught:
        cli.main([str(folder), out, "--type", "Q9"])
    assert caught.value.code == 2


def test_module_is_a_program(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_gemma.quantize", str(folder), str(tmp_path / "nowhere" / "out.gguf")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "create it first" in done.stderr


def test_progress_bar_on_a_terminal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main([str(folder), str(tmp_path / "out.gguf")]) == 0
    assert "B/s" in capsys.readouterr().err
