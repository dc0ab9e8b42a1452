"""Sequences on disk: they go on as if they had never been away. Files that are refused: `test_session_files.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_gemma import EdgeGemmaError, Gemma, MemoryBudgetError
from edge_gemma.engine import session_file, sessions
from edge_gemma.engine.session_file import Target
from edge_gemma.errors import OutputError
from edge_gemma.kernels.isa import available, current
from edge_gemma.kernels.layout import SPAN
from tests.conftest import TinyGguf
from tests.engine.saving import CONTEXT, LONG, SHORT, Kind, bits, content_of, ids, read, same

ROOT = Path(__file__).resolve().parents[2]
CASES = [("gemma2-27b", "F16", "f16"), ("gemma3-256", "Q4_K", "f32"), ("gemma1-mqa", "Q8_0", "f16")]
"""Windows of 24 and 16 positions, and none."""
POSIX = os.name == "posix"


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def case(request: pytest.FixtureRequest, tiny_gguf: TinyGguf) -> tuple[Path, Kind]:
    name, format, kind = request.param
    return tiny_gguf(name, format), kind


# ---- going on --------------------------------------------------------------------------------------------------------


def test_going_on_gives_the_same_bits(case: tuple[Path, Kind], tmp_path: Path) -> None:
    path, kind = case
    with Gemma(path, CONTEXT, 2, kind) as model:
        sequence = read(model, LONG)
        sequence.save(tmp_path / "saved")
        before = model.stats().steps
        here = model.load_sequence(tmp_path / "saved")
        assert len(here) == LONG and same(here, sequence)
        assert model.stats().steps == before + 1, "the last token, for its logits"
        with Gemma(path, CONTEXT + 100, 1, kind, chunk=7) as other:
            there = other.load_sequence(tmp_path / "saved")
            for more in (3, 1, 20):
                for each in (sequence, here, there):
                    each.append(ids(more, seed=more))
                assert same(here, sequence) and same(there, sequence)


def test_it_may_be_forked_and_cut_as_before(case: tuple[Path, Kind], tmp_path: Path) -> None:
    path, kind = case
    with Gemma(path, CONTEXT, 2, kind) as model:
        sequence = read(model, LONG)
        sequence.save(tmp_path / "saved")
        loaded = model.load_sequence(tmp_path / "saved")
        fork = loaded.fork()
        for length in (LONG - 5, LONG - 40, SPAN, 3):
            sequence.truncate(length)
            loaded.truncate(length)
            assert same(loaded, sequence), length
            for each in (sequence, loaded):
                each.append(ids(2, seed=length))
            assert same(loaded, sequence), length
        expected = read(model, LONG)
        for each in (fork, expected):
            each.append([1, 2])
        assert same(fork, expected)


def test_saved_again_it_is_the_same_file(case: tuple[Path, Kind], tmp_path: Path) -> None:
    path, kind = case
    with Gemma(path, CONTEXT, 2, kind) as model:
        read(model, LONG).save(tmp_path / "one")
        model.load_sequence(tmp_path / "one").save(tmp_path / "two")
        read(model, LONG).save(tmp_path / "three")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "three").read_bytes()


def test_windowed_layers_save_what_they_have(model: Gemma, tmp_path: Path) -> None:
    read(model, LONG).save(tmp_path / "saved")
    header, content = content_of(tmp_path / "saved")
    assert header["first_positions"] == [2 * SPAN, 0] * 2 + [2 * SPAN]
    positions = 3 * (LONG - 2 * SPAN) + 2 * LONG
    assert len(content) == 4 * LONG + positions * 2 * 4 * 32 * 2, "keys and values, 4 heads of 32, f16"
    loaded = model.load_sequence(tmp_path / "saved")
    assert loaded._held.table is not None and loaded._held.table.bytes == 9 * SPAN * 2 * 4 * 32 * 2


def test_others_begin_with_it(path: Path, tmp_path: Path) -> None:
    prompt = [*ids(LONG), 5, 6, 7]
    with Gemma(path, CONTEXT, threads=2) as model:
        expected = model.generate(prompt, max_tokens=8, temperature=0)
        read(model, LONG).save(tmp_path / "saved")
    for kept, cached in ((None, LONG), (0, 0)):
        with Gemma(path, CONTEXT, threads=2, prefix_cache=kept) as model:
            model.load_sequence(tmp_path / "saved").close()
            made = model.generate(prompt, max_tokens=8, temperature=0)
            assert made.token_ids == expected.token_ids and made.usage.cached_tokens == cached


def test_no_token_at_all(model: Gemma, tmp_path: Path) -> None:
    model.sequence().save(tmp_path / "saved")
    loaded = model.load_sequence(tmp_path / "saved")
    assert loaded.token_ids == []
    loaded.append(ids(4))
    assert same(loaded, read(model, 4))


def test_what_is_not_computed_is_not_saved_and_read_again(model: Gemma, tmp_path: Path) -> None:
    sequence = read(model, LONG)
    sequence.truncate(100)  # from where the windows have moved on
    sequence.save(tmp_path / "saved")
    assert content_of(tmp_path / "saved")[0]["positions"] == 0
    loaded = model.load_sequence(tmp_path / "saved")
    assert same(loaded, read(model, 100))


def test_cut_where_windows_can_go_on(model: Gemma, tmp_path: Path) -> None:
    """The layers then have what a sequence of that length would not have kept."""
    sequence = read(model, 2 * SPAN + 30)
    sequence.truncate(2 * SPAN + 20)
    sequence.save(tmp_path / "saved")
    loaded = model.load_sequence(tmp_path / "saved")
    for each in (sequence, loaded):
        each.append(ids(SPAN))
    assert same(loaded, sequence)


def test_a_loaded_one_gives_its_memory_back(path: Path, tmp_path: Path) -> None:
    with Gemma(path, CONTEXT, threads=2, prefix_cache=0) as model:
        with read(model, LONG) as sequence:
            sequence.save(tmp_path / "saved")
        assert model.stats().page_bytes == 0
        with model.load_sequence(tmp_path / "saved"):
            assert model.stats().page_bytes > 0
        assert model.stats().page_bytes == 0


# ---- other instruction sets ------------------------------------------------------------------------------------------

WITH_FMA = [isa.name for isa in available() if isa.fma]
OTHERS = [isa.name for isa in available() if isa is not current()]
GO_ON = """
    import sys, numpy as np
    from edge_gemma import Gemma
    path, context, kind, source, copy, result = sys.argv[1:]
    with Gemma(path, int(context), 2, kind) as model:
        sequence = model.load_sequence(source)
        sequence.save(copy)
        sequence.append([9, 8, 7])
        np.save(result, sequence.logits)
        fresh = model.sequence()
        fresh.append(sequence.token_ids[:-3])
        fresh.save(result + ".fresh")
"""


@pytest.mark.parametrize("isa", OTHERS)
@pytest.mark.parametrize(("name", "format", "kind"), [("gemma2-256", "Q4_0", "f16"), CASES[1]])
def test_other_instruction_sets(
    isa: str, name: str, format: str, kind: Kind, tiny_gguf: TinyGguf, tmp_path: Path
) -> None:
    """They read what is written here and write the same, and what they have computed goes on here.

    Weights are quantized: the order of sums over float ones depends on the width of vectors.
    """
    path, one, copy, result = tiny_gguf(name, format), *(tmp_path / name for name in ("one", "copy", "result.npy"))
    with Gemma(path, CONTEXT, 2, kind) as model:
        sequence = read(model, LONG)
        sequence.save(one)
        command = [sys.executable, "-c", textwrap.dedent(GO_ON), *map(str, (path, CONTEXT, kind, one, copy, result))]
        environment = os.environ | {"EDGE_GEMMA_ISA": isa, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, env=environment, check=True, timeout=600)
        assert copy.read_bytes() == one.read_bytes()
        sequence.append([9, 8, 7])
        theirs = model.load_sequence(f"{result}.fresh")
        theirs.append([9, 8, 7])
        if isa in WITH_FMA and current().fma:
            assert np.array_equal(np.load(result).view(np.uint32), bits(sequence))
            assert same(theirs, sequence)
        else:  # which rounds twice
            assert np.allclose(np.load(result), sequence.logits, atol=0.05)
            assert np.allclose(theirs.logits, sequence.logits, atol=0.05)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_prefixes_make_room(path: Path, tmp_path: Path) -> None:
    with Gemma(path, CONTEXT, threads=2) as model:
        with read(model, LONG) as sequence:
            sequence.save(tmp_path / "saved")
        kept = model.stats().page_bytes
        model._runner.pool.limit_bytes = kept  # all of which a prefix has
        with model.load_sequence(tmp_path / "saved") as loaded:
            assert loaded.logits.shape == (model.config.vocab_size,)
        model._runner.pool.limit_bytes = kept - 1
        with pytest.raises(MemoryBudgetError, match=r"saved: pages of the key-value cache: \d+ bytes more"):
            model.load_sequence(tmp_path / "saved")
        assert model.stats().page_bytes == 0


# ---- writing ---------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_only_a_session_is_replaced(model: Gemma, path: Path, saved: Path, tmp_path: Path) -> None:
    sequence = read(model, 5)
    (tmp_path / "empty").touch()
    for file in (saved, tmp_path / "empty"):
        sequence.save(file)
        assert model.load_sequence(file).token_ids == ids(5)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match=r"letter\.txt exists and is no saved sequence; name another file"):
        sequence.save(tmp_path / "letter.txt")
    with pytest.raises(FileExistsError, match="part of the source"):
        sequence.save(path)
    with pytest.raises(NotADirectoryError, match="create it first"):
        sequence.save(tmp_path / "none" / "x")
    with pytest.raises(FileExistsError, match="is a folder"):
        sequence.save(tmp_path)
    with pytest.raises(TypeError, match="path: expected a str"):
        sequence.save(None)  # type: ignore[arg-type]
    assert names(tmp_path) == ["empty", "letter.txt", "saved"] and (tmp_path / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("error", [OutputError("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_error_leaves_what_was_there(
    model: Gemma, saved: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    before, count, write_part = saved.read_bytes(), 0, Target.write
    sequence = read(model, SHORT + 1)
    pages = model.stats().page_bytes

    def write(self: Target, data: bytes | memoryview) -> None:
        nonlocal count
        if count == at:
            raise error
        count += 1
        write_part(self, data)

    monkeypatch.setattr(Target, "write", write)
    with pytest.raises(type(error)):
        sequence.save(saved)
    assert saved.read_bytes() == before and names(saved.parent) == ["saved"]
    assert model.stats().page_bytes == pages
    monkeypatch.undo()
    sequence.save(saved)
    assert same(model.load_sequence(saved), sequence)


FULL = """
    import resource, sys
    from edge_gemma import Gemma
    with Gemma(sys.argv[1], 600, 1) as model:
        sequence = model.load_sequence(sys.argv[2])
        sequence.append([1] * 500)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            sequence.save(sys.argv[2])
        except OSError as error:
            print(error)
        print(len(sequence), len(model.load_sequence(sys.argv[2])))
"""


@pytest.mark.skipif(not POSIX, reason="resource limits of POSIX")
def test_a_disk_that_takes_no_more(saved: Path, path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(path), str(saved)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    error, lengths = done.stdout.splitlines()
    assert error == f"{saved}: File too large; make room there, or name a file on another disk"
    assert lengths == f"{SHORT + 500} {SHORT}" and names(saved.parent) == ["saved"]


def test_a_disk_without_room(model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutputError, match=r"x: needs \d+ bytes of disk, 10 are free; make room there"):
        read(model, 5).save(tmp_path / "x")
    assert names(tmp_path) == []


# ---- beside others ---------------------------------------------------------------------------------------------------


def in_the_midst(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have `action` called between two pieces of a sequence that is saved, each a page."""
    monkeypatch.setattr(sessions, "BATCH_BYTES", 1)
    count, write_part = 0, Target.write

    def write(self: Target, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        if count == 5:
            action()
        write_part(self, data)

    monkeypatch.setattr(Target, "write", write)


def test_answers_are_made_while_it_is_saved(model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = read(model, LONG)
    made: list[list[int]] = []
    in_the_midst(monkeypatch, lambda: made.append(model.generate(ids(40), max_tokens=5, temperature=0).token_ids))
    sequence.save(tmp_path / "saved")
    assert made == [model.generate(ids(40), max_tokens=5, temperature=0).token_ids]
    assert same(model.load_sequence(tmp_path / "saved"), sequence)


def test_it_is_closed_while_it_is_saved(model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence, expected = read(model, LONG), read(model, LONG)

    def close() -> None:
        sequence.close()
        read(model, LONG).append([3] * 100)  # takes pages that are free

    in_the_midst(monkeypatch, close)
    sequence.save(tmp_path / "saved")
    assert same(model.load_sequence(tmp_path / "saved"), expected)
    with pytest.raises(EdgeGemmaError, match="the sequence is closed"):
        sequence.save(tmp_path / "saved")


def test_it_is_saved_while_it_is_saved(model: Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence, other = read(model, LONG), read(model, 5)

    def save() -> None:
        with pytest.raises(FileExistsError, match="is being written by this process; wait for it"):
            other.save(tmp_path / "saved")

    in_the_midst(monkeypatch, save)
    sequence.save(tmp_path / "saved")
    assert same(model.load_sequence(tmp_path / "saved"), sequence)


def test_the_model_is_closed_meanwhile(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gemma(path, CONTEXT, threads=2) as model:
        sequence = read(model, LONG)
        sequence.save(tmp_path / "saved")
        in_the_midst(monkeypatch, model.close)
        with pytest.raises(EdgeGemmaError, match="the model is closed"):
            sequence.save(tmp_path / "other")
        for call in (lambda: sequence.save(tmp_path / "x"), lambda: model.load_sequence(tmp_path / "saved")):
            with pytest.raises(EdgeGemmaError, match="the model is closed"):
                call()
    assert names(tmp_path) == ["saved"]
    monkeypatch.undo()
    take, count = session_file.Source.take, 0
    with Gemma(path, CONTEXT, threads=2) as model:

        def closing(self: session_file.Source, size: int) -> bytearray:
            nonlocal count
            count += 1
            if count == 4:
                model.close()
            return take(self, size)

        monkeypatch.setattr(session_file.Source, "take", closing)
        with pytest.raises(EdgeGemmaError, match="the model is closed"):
            model.load_sequence(tmp_path / "saved")


def test_two_threads_save_and_load(model: Gemma, tmp_path: Path) -> None:
    """The same file: one of those that write it at a time, and who reads it sees a whole one."""
    read(model, LONG).save(tmp_path / "saved")
    failed: list[BaseException] = []
    refused = 0

    def work(count: int) -> None:
        nonlocal refused
        try:
            sequence = read(model, count)
            for _ in range(5):
                try:
                    sequence.save(tmp_path / "saved")
                except FileExistsError as error:
                    assert "is being written by this process; wait" in str(error)
                    refused += 1
                loaded = model.load_sequence(tmp_path / "saved")
                assert loaded.token_ids == ids(len(loaded)) and len(loaded) in (LONG, LONG - 50, LONG + 50)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(count,)) for count in (LONG - 50, LONG + 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and names(tmp_path) == ["saved"]


# ---- the real one ----------------------------------------------------------------------------------------------------


def test_the_real_model(real_model: Path, tmp_path: Path) -> None:
    text = "The lighthouse keeper wrote down every ship that passed, its name and the hour. " * 60
    with Gemma(real_model, context=2048) as model:
        sequence = model.sequence()
        sequence.append(text)
        sequence.save(tmp_path / "saved")
        assert content_of(tmp_path / "saved")[0]["first_positions"].count(SPAN) == 15
        sequence.append(" The last of them was")
    with Gemma(real_model, context=2048, threads=1) as model:
        loaded = model.load_sequence(tmp_path / "saved")
        loaded.append(" The last of them was")
        assert loaded.token_ids == sequence.token_ids
        assert np.array_equal(bits(loaded), sequence._state[1].view(np.uint32))  # type: ignore[union-attr]
        made = model.generate(loaded.token_ids, max_tokens=4, temperature=0)
        assert made.usage.cached_tokens >= len(loaded) - 10


def test_keys_and_values_with_scales_are_refused(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    with Gemma(tiny_gguf("gemma2-2b"), kv_type="q8_0") as model:
        sequence = model.sequence()
        sequence.append([2, 3])
        for call in (sequence.save, model.load_sequence):
            with pytest.raises(EdgeGemmaError, match='kv_type="q8_0": its sequences cannot be saved'):
                call(tmp_path / "saved")
