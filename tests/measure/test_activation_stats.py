"""The statistics of an importance matrix: against the model's own arithmetic, whatever the threads and windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_gemma.commands import cli
from edge_gemma.errors import ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.measure.activation_stats import ActivationStats, Sums
from edge_gemma.measure.self_generated_text import LENGTH, self_generated_texts
from edge_gemma.quantize import imatrix
from tests.conftest import TinyGguf
from tests.goldens.real import DATA, WINDOW
from tests.goldens.real import windows as real_windows

WINDOWS = [[2, *range(10, 70)], [2, *range(100, 140)]]
PER_LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def collect(path: Path, threads: int = 2) -> tuple[Sums, int]:
    with ActivationStats(path, 64, threads) as stats:
        for window in WINDOWS:
            stats.add(window)
        return stats.sums, stats.rows


@pytest.mark.parametrize("case", ["gemma1-mqa", "gemma2-2b", "gemma2-untied", "gemma3-4b"])
def test_every_matrix_has_its_columns(tiny_gguf: TinyGguf, case: str) -> None:
    path = tiny_gguf(case)
    sums, rows = collect(path)
    assert rows == sum(map(len, WINDOWS))
    with GgufFile.open(path) as file:
        matrices = {name: t.shape[1] for name, t in file.tensors.items() if len(t.shape) == 2}
    if "output.weight" in matrices:
        del matrices["token_embd.weight"]  # read by rows, and multiplied with nothing
    assert {name: len(values) for name, values in sums.items()} == matrices
    assert all((values > 0).all() for values in sums.values())


def test_experts_are_observed_each_by_what_it_was_given(tiny_gguf: TinyGguf) -> None:
    """All together the experts were given each row as often as rows choose experts."""
    path = tiny_gguf("gemma4-26b")
    with GgufFile.open(path) as file:
        tensors = {name: t.shape for name, t in file.tensors.items() if len(t.shape) == 3}
        used = file.metadata.u32("gemma4.expert_used_count")
    found = {}
    for threads in (1, 2):
        with ActivationStats(path, 64, threads) as stats:
            for window in WINDOWS:
                stats.add(window)
            assert not stats.sums.keys() & tensors.keys() and {"blk.0.ffn_gate_inp.weight"} <= stats.sums.keys()
            found[threads] = stats.expert_sums, stats.expert_rows
            assert all(rows.sum() == used * stats.rows for rows in stats.expert_rows.values())
    sums, rows = found[1]
    assert {name: values.shape for name, values in sums.items()} == {n: (s[0], s[2]) for n, s in tensors.items()}
    assert all(((values > 0).all(axis=1) == (rows[name] > 0)).all() for name, values in sums.items())
    assert all(np.array_equal(values, found[2][0][name]) for name, values in sums.items())


def test_matrices_of_one_input_have_the_same_sums(tiny_gguf: TinyGguf) -> None:
    sums, _ = collect(tiny_gguf("gemma2-2b"))
    q, k, v, _, gate, up, _ = (sums[f"blk.1.{name}.weight"] for name in PER_LAYER)
    assert np.array_equal(q, k) and np.array_equal(q, v) and np.array_equal(gate, up)
    assert not np.array_equal(q, gate) and not np.array_equal(q, sums["blk.2.attn_q.weight"])


def test_the_first_layers_input_is_the_normed_embedding(tiny_gguf: TinyGguf) -> None:
    """From the file: embedding of each token, scaled, normed; its squares summed."""
    path = tiny_gguf("gemma2-2b")
    sums, _ = collect(path)
    with GgufFile.open(path) as file:
        table = file.data(file.tensors["token_embd.weight"]).view(np.float32).astype(np.float64)
        weight = file.data(file.tensors["blk.0.attn_norm.weight"]).view(np.float32).astype(np.float64)
    x = table[np.concatenate(WINDOWS)] * np.sqrt(table.shape[1])
    h = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(sums["blk.0.attn_q.weight"], (h * h).sum(axis=0), rtol=1e-5)


def test_quantized_matrices_are_observed_too(tiny_gguf: TinyGguf) -> None:
    """Their inputs are the floats before rounding to int8; a calm model's statistics hardly move."""
    exact, _ = collect(tiny_gguf("gemma3-256", "Q8_0", dequantized=True))
    rounded, _ = collect(tiny_gguf("gemma3-256", "Q8_0"))
    for name, values in exact.items():
        ratio = rounded[name].sum() / values.sum()
        assert ratio == pytest.approx(1, abs=0.05), name


def test_the_same_bits_for_any_threads(tiny_gguf: TinyGguf) -> None:
    one, two = (collect(tiny_gguf("gemma3-4b"), threads)[0] for threads in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelFormatError):
        ActivationStats(path, 64)


def test_the_command_writes_what_is_read(
    tiny_gguf: TinyGguf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text, out = tiny_gguf("gemma2-2b"), tmp_path / "calibration.txt", tmp_path / "i.gguf"
    text.write_text("aa bb ab ba " * 30)
    arguments = ["imatrix", str(model), str(text), "-o", str(out), "-c", "32", "--windows", "3"]
    assert cli.main(arguments) == 0
    assert "3 windows" in capsys.readouterr().err
    found = imatrix.load(out)
    assert (found.datasets, found.chunks) == (("calibration.txt",), 3)
    assert len(found.means) == 1 + 4 * len(PER_LAYER)
    assert cli.main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    before = out.read_bytes()
    assert cli.main([*arguments, "--force", "-t", "1"]) == 0
    assert out.read_bytes() == before


def test_without_a_text_the_model_writes_one(
    tiny_gguf: TinyGguf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_gguf("gemma2-2b"), tmp_path / "i.gguf"
    assert cli.main(["imatrix", str(model), "-o", str(out), "--tokens", "320", "--seed", "3"]) == 0
    assert f"i.gguf: {1 + 4 * len(PER_LAYER)} matrices" in capsys.readouterr().err
    found, texts = imatrix.load(out), self_generated_texts(model, 320, seed=3)
    assert (found.datasets, found.chunks) == (("text of the model itself, seed 3",), len(texts))
    with ActivationStats(model, LENGTH) as stats:
        for text in texts:
            stats.add(text)
    made = imatrix.of_sums(stats.sums, stats.rows, datasets=found.datasets, chunks=len(texts)).means
    assert all(np.array_equal(made[name], found.means[name]) for name in found.means | made)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--windows", "3"], "--windows is for a TEXT"),
        (["t.txt", "--tokens", "3"], "--tokens is for what the model writes"),
        (["--seed", "-1"], "seed must be an integer from 0"),
    ],
)
def test_arguments_that_do_not_go_together(
    tiny_gguf: TinyGguf, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["imatrix", str(tiny_gguf("gemma2-2b")), *more, "-o", str(tmp_path / "i.gguf")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_to_overwrite_its_model(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    model, text = tiny_gguf("gemma2-2b"), tmp_path / "t.txt"
    text.write_text("aa")
    before = model.read_bytes()
    assert cli.main(["imatrix", str(model), str(text), "-o", str(model), "--force"]) == 2
    assert model.read_bytes() == before


def test_the_real_models_statistics_are_llama_cpps(real_model: Path) -> None:
    """Over a window of the recorded text. Both round activations to 8 bits, not alike: measured, 1.7% and 0.9988."""
    with np.load(DATA / "imatrix_270m.npz") as file, np.load(DATA / "text_ids.npz") as ids:
        theirs, window = dict(file), real_windows(ids["ids"])[0].tolist()
    with ActivationStats(real_model, WINDOW, 2) as stats:
        stats.add(window)
    assert len(theirs) == 12
    for name, expected in theirs.items():
        ours = stats.sums[name]
        assert ours.sum() == pytest.approx(expected.sum(), rel=0.03), name
        assert np.corrcoef(ours, expected)[0, 1] > 0.995, name
