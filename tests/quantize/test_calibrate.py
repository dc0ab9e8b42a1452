"""`quantize --calibrate`: the same as writing Q8_0, having it write a text, and quantizing with what that text uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_gemma import Gemma
from edge_gemma.commands import cli
from edge_gemma.commands.calibrate import calibrator
from edge_gemma.gguf.file import GgufFile
from edge_gemma.measure.quality import compare
from edge_gemma.quantize import quantize
from edge_gemma.quantize.imatrix import ImportanceMatrix
from edge_gemma.quantize.output.provenance import source_copy
from tests.goldens.gemma4_cases import GEMMA4_CASES, write_checkpoint
from tests.goldens.real import DATA
from tests.goldens.real import windows as real_windows
from tests.quantize import tiny_checkpoint as tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    return tmp_path / "hf"


def data(path: Path) -> dict[str, bytes]:
    with GgufFile.open(path) as file:
        return {name: file.data(tensor).tobytes() for name, tensor in file.tensors.items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_the_three_commands_in_one(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, wide, matrix, again = (tmp_path / f"{name}.gguf" for name in ("out", "wide", "matrix", "again"))
    arguments = ["quantize", str(checkpoint), "--type", "Q4_0"]
    assert cli.main([*arguments, str(out), "--calibrate"]) == 0
    assert names(tmp_path) == ["hf", "out.gguf"]
    quantize(checkpoint, wide, "Q8_0")
    assert cli.main(["imatrix", str(wide), "-o", str(matrix)]) == 0
    assert cli.main([*arguments, str(again), "--imatrix", str(matrix)]) == 0
    assert data(out) == data(again)
    quantize(checkpoint, again, "Q4_0", force=True)
    assert data(out) != data(again)
    with GgufFile.open(out) as file:
        assert file.metadata.string("quantize.imatrix.file") == "(calibrated)"
        assert file.metadata.string("quantize.imatrix.dataset") == "text of the model itself, seed 0"
    assert "matrices, 20" in capsys.readouterr().err


def test_the_same_bytes_on_a_second_run(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        quantize(checkpoint, tmp_path / name, "Q4_1", calibrate=calibrator(quiet=True))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_quiet_is_quiet(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(checkpoint), str(tmp_path / "out.gguf"), "--calibrate", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_the_copy_is_removed_whatever_happens(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"what was there")

    def fail(model: Path) -> ImportanceMatrix:
        with GgufFile.open(model) as file:
            assert file.tensors["blk.0.attn_q.weight"].format.name == "Q8_0"
        assert names(tmp_path) == [source_copy(out).name, "hf", "out.gguf"]
        raise KeyboardInterrupt

    source_copy(out).write_bytes(b"what a killed run left")
    with pytest.raises(KeyboardInterrupt):
        quantize(checkpoint, out, calibrate=fail, force=True)
    assert names(tmp_path) == ["hf", "out.gguf"] and out.read_bytes() == b"what was there"


def test_an_existing_file_is_seen_before_the_model_runs(checkpoint: Path, tmp_path: Path) -> None:
    def fail(model: Path) -> ImportanceMatrix:
        raise AssertionError(model)

    (tmp_path / "out.gguf").touch()
    with pytest.raises(FileExistsError):
        quantize(checkpoint, tmp_path / "out.gguf", calibrate=fail)
    assert names(tmp_path) == ["hf", "out.gguf"]


def test_two_matrices_are_one_too_many(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="there is an importance matrix already"):
        quantize(checkpoint, tmp_path / "out.gguf", imatrix=tmp_path / "i", calibrate=calibrator(quiet=True))
    assert cli.main(["quantize", str(checkpoint), "out.gguf", "--imatrix", "i", "--calibrate"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_dry_run_runs_nothing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(checkpoint), "--calibrate", "--dry-run"]) == 2
    assert "--calibrate runs the model, --dry-run does not" in capsys.readouterr().err


def test_the_real_model_loses_less(real_model: Path, tmp_path: Path) -> None:
    """Q4_0 of weights that are Q4_K_M: calibrated, the divergence was 0.42 of the other's over two texts."""
    plain, calibrated = tmp_path / "plain.gguf", tmp_path / "calibrated.gguf"
    quantize(real_model, plain, "Q4_0", requantize=True)
    quantize(real_model, calibrated, "Q4_0", requantize=True, calibrate=calibrator(quiet=True))
    with np.load(DATA / "text_ids.npz") as file:
        window = real_windows(file["ids"])[0].tolist()[:256]
    with Gemma(real_model) as reference:
        found = []
        for path in (plain, calibrated):
            with Gemma(path) as model:
                found.append(compare(model, reference, [window]).kl_mean)
    assert found[1] < 0.7 * found[0], found


def test_experts_are_calibrated_each_by_its_own_tokens(tmp_path: Path) -> None:
    """The matrix that is written has rows and counts of each, and `--calibrate` uses the same."""
    folder, wide, matrix = (tmp_path / name for name in ("hf", "wide.gguf", "matrix.gguf"))
    write_checkpoint(GEMMA4_CASES["gemma4-26b"], folder)
    quantize(folder, wide, "Q8_0")
    assert cli.main(["imatrix", str(wide), "-o", str(matrix)]) == 0
    with GgufFile.open(matrix) as file:
        name = "blk.2.ffn_down_exps.weight"
        assert file.tensors[f"{name}.in_sum2"].shape == (8, 64) and file.tensors[f"{name}.counts"].shape == (8, 1)
        counts = file.data(file.tensors[f"{name}.counts"]).view("<f4").ravel()
        tokens = float(file.data(file.tensors["blk.2.attn_q.weight.counts"]).view("<f4")[0, 0])
        assert counts.sum() == 2 * tokens > 0 and len(set(counts.tolist())) > 1
    quantize(folder, tmp_path / "a.gguf", "Q4_0", calibrate=calibrator(quiet=True))
    quantize(folder, tmp_path / "b.gguf", "Q4_0", imatrix=matrix)
    assert data(tmp_path / "a.gguf") == data(tmp_path / "b.gguf")
