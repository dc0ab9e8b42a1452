"""The provenance in a written file, and `verify`: what is sound passes, what was touched is named."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge_gemma import Gemma
from edge_gemma.commands import cli
from edge_gemma.formats import FORMATS
from edge_gemma.gguf.file import GgufFile
from edge_gemma.measure.quality import compare, text_windows
from edge_gemma.quantize import quantize
from edge_gemma.quantize.convert import open_source
from edge_gemma.quantize.output import provenance
from edge_gemma.quantize.output.writer import TensorInfo
from edge_gemma.quantize.verification import FLOAT16_AT, count_not_finite, verify
from tests.kernels.harness import random_rows, scale_offsets
from tests.quantize import tiny_checkpoint as tiny

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
Made = tuple[Path, Path]


@pytest.fixture(scope="module", params=TYPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint and the file of one type made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.write_checkpoint(folder / "hf", "gemma3")
    quantize(folder / "hf", folder / "out.gguf", request.param)
    return folder / "hf", folder / "out.gguf"


@pytest.fixture
def q4(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q4_0")
    return tmp_path / "out.gguf"


def overwrite(path: Path, tensor: str, at: int, data: bytes) -> None:
    with GgufFile.open(path) as file:
        offset = file.tensors[tensor].offset
    raw = bytearray(path.read_bytes())
    raw[offset + at : offset + at + len(data)] = data
    path.write_bytes(raw)


# ---- provenance ------------------------------------------------------------------------------------------------------


def test_the_provenance_is_true(made: Made) -> None:
    """Recomputed from its definition, with gguf's dequantizer and the source's own values."""
    source, path = made
    with GgufFile.open(path) as file:
        keys = file.metadata
        assert keys.string(provenance.NAMES) == hashlib.sha256("\n".join(file.tensors).encode()).hexdigest()
        hashes = [hashlib.sha256(file.data(t).tobytes()).digest() for t in file.tensors.values()]
        assert keys.int_array(provenance.HASHES).tobytes() == b"".join(hashes)
        stored, expected = hashlib.sha256(), []
        for tensor in open_source(source).tensors:
            raw = np.ascontiguousarray(tensor.raw(0, tensor.rows))
            stored.update(raw.tobytes())
            exact = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.format.name])
            exact = exact.astype(np.float32).astype(np.float64) + tensor.shift
            ours = file.tensors[tensor.name]
            values = gguf.quants.dequantize(file.data(ours), gguf.GGMLQuantizationType[ours.format.name])
            error = values.reshape(exact.shape) - exact
            expected.append(np.sqrt((error**2).mean() / (exact**2).mean()))
        assert keys.string(provenance.SOURCE) == stored.hexdigest()
        np.testing.assert_allclose(keys.float_array(provenance.ERRORS), expected, rtol=1e-5, atol=1e-7)


def test_errors_are_those_of_the_type(made: Made) -> None:
    _, path = made
    bounds = {"F32": (0, 0), "F16": (1e-6, 1e-3), "BF16": (0, 3e-3), "Q8_0": (1e-3, 1e-2), "Q4_0": (0.05, 0.15)}
    with GgufFile.open(path) as file:
        errors = dict(zip(file.tensors, file.metadata.float_array(provenance.ERRORS), strict=True))
        kinds = {name: t.format.name for name, t in file.tensors.items()}
    for name, error in errors.items():
        low, high = bounds[kinds[name]]
        assert kinds[name] == "F32" or low <= error <= high, name


def test_the_gguf_package_reads_it(made: Made) -> None:
    fields = gguf.GGUFReader(made[1]).fields
    kind = gguf.GGUFValueType
    assert fields[provenance.HASHES].types == [kind.ARRAY, kind.UINT32]
    assert fields[provenance.ERRORS].types == [kind.ARRAY, kind.FLOAT32]
    assert fields[provenance.SOURCE].types == [kind.STRING]


def test_two_runs_and_any_threads_write_the_same(tmp_path: Path, q4: Path) -> None:
    for threads in (1, 3):
        quantize(tmp_path / "hf", tmp_path / f"{threads}.gguf", "Q4_0", threads=threads)
        assert (tmp_path / f"{threads}.gguf").read_bytes() == q4.read_bytes()


def test_a_file_made_of_a_written_one_has_its_own_provenance(tmp_path: Path, made: Made) -> None:
    quantize(made[1], tmp_path / "again.gguf", "Q8_0", requantize=True)
    assert verify(tmp_path / "again.gguf", open_source(made[1])).ok
    assert not verify(tmp_path / "again.gguf", open_source(made[0])).ok or made[1].stem == "F32"


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (100, 640), (262144, 640), (9216, 2304)])
def test_the_sample_is_large_enough_and_bounded(rows: int, columns: int) -> None:
    taken = len(range(0, rows, provenance.sampled(rows, columns))) * columns
    assert min(rows * columns, provenance.SAMPLE_VALUES) <= taken <= 2 * provenance.SAMPLE_VALUES + columns


@pytest.mark.parametrize("cuts", [[0, 4096], [0, 1, 777, 4000, 4096], list(range(0, 4097, 64))])
def test_errors_do_not_depend_on_how_a_tensor_is_cut(cuts: list[int]) -> None:
    values = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)
    info = TensorInfo("x", values.shape, FORMATS["F16"], values.size * 2)
    data = values.astype(np.float16).view(np.uint8)
    total = provenance.ErrorSum()
    for start, stop in pairwise(cuts):
        total.add(provenance.measure(values[start:stop], data[start:stop], info, start))
    sample = values[::4].astype(np.float64)
    error = values[::4].astype(np.float16).astype(np.float64) - sample
    assert total.relative == pytest.approx(np.sqrt((error**2).sum() / (sample**2).sum()), rel=1e-12)


def test_zeros_kept_as_zeros_have_no_error() -> None:
    assert provenance.ErrorSum().relative == 0
    assert provenance.ErrorSum(1.0, 0.0).relative == np.inf


# ---- --compare -------------------------------------------------------------------------------------------------------


def compared(tmp_path: Path, *more: str) -> int:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    arguments = ["quantize", str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--quiet", "--force"]
    return cli.main([*arguments, "--compare", str(text), "--compare-windows", "1", *more])


def quality_in(path: Path) -> dict[str, Any]:
    with GgufFile.open(path, strict=True) as file:
        found = {key: value for key, value in file.metadata.items() if key.startswith(provenance.QUALITY)}
    return {key.removeprefix(provenance.QUALITY): value for key, value in found.items()}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_file_is_compared_with_its_source(tmp_path: Path, dtype: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2", dtype=dtype)
    assert compared(tmp_path, "--type", "Q8_0") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out.gguf", "text.txt"]
    found = quality_in(tmp_path / "out.gguf")
    quantize(tmp_path / "hf", tmp_path / "source.gguf", dtype)
    text = (tmp_path / "text.txt").read_text()
    with Gemma(tmp_path / "out.gguf") as model, Gemma(tmp_path / "source.gguf") as source:
        expected = compare(model, source, text_windows(model, text, 512, 1))
    assert found == {
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "context": 512,
        "tokens": len(expected.divergence),
        "kl_mean": np.float32(expected.kl_mean),
        "kl_p99": np.float32(expected.kl_p99),
        "top_1": np.float32(expected.top_1),
        "perplexity_ratio": np.float32(expected.perplexity_ratio),
    }
    assert 0 < found["kl_mean"] < 1
    assert verify(tmp_path / "out.gguf", open_source(tmp_path / "hf")).ok


def test_a_gguf_source_is_compared_with_where_it_lies(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "model", "gemma2")
    quantize(tmp_path / "model", tmp_path / "hf", "F32")  # a file of this name, where the others have a folder
    assert compared(tmp_path, "--type", "F32") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "model", "out.gguf", "text.txt"]
    found = quality_in(tmp_path / "out.gguf")
    assert (found["kl_mean"], found["top_1"], found["perplexity_ratio"]) == (0.0, 1.0, 1.0)


def test_a_file_that_calls_it_certified_is_verified_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files of before have it."""
    monkeypatch.setattr(provenance, "QUALITY", "edge_gemma.certified.")
    tiny.write_checkpoint(tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0", compare=lambda *_: provenance.UNKNOWN)
    monkeypatch.undo()
    assert quality_in(tmp_path / "out.gguf") == {}
    assert verify(tmp_path / "out.gguf", open_source(tmp_path / "hf")).problems == []


def test_a_failed_comparison_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")

    def fail(written: Path, source: Path) -> provenance.Quality:
        assert {written.name, source.name} <= {p.name for p in tmp_path.iterdir()}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0", compare=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_what_a_killed_comparison_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    provenance.source_copy(tmp_path / "out.gguf").write_bytes(b"left")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out.gguf"]


def test_a_missing_text_is_seen_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    arguments = ["quantize", str(tmp_path / "hf"), str(tmp_path / "out.gguf"), "--compare", str(tmp_path / "none")]
    assert cli.main(arguments) == 2
    assert "none: No such file" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("more", [["--compare", "text", "--compare-windows", "0"], ["--compare-windows", "2"]])
def test_windows_are_of_the_text(tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tmp_path / "hf"), str(tmp_path / "out.gguf"), *more]) == 2
    assert "--compare-windows is for --compare, and at least 1" in capsys.readouterr().err


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_sound(made: Made) -> None:
    source, path = made
    alone, beside = verify(path), verify(path, open_source(source))
    for result in (alone, beside):
        assert result.problems == []
        assert result.has_provenance
    assert alone.errors == {}
    assert len(beside.errors) == beside.tensors == alone.tensors


def test_every_tensor_is_guarded(q4: Path) -> None:
    with GgufFile.open(q4) as file:
        last_bytes = {name: t.nbytes - 1 for name, t in file.tensors.items()}
    whole = q4.read_bytes()
    for name, at in last_bytes.items():
        overwrite(q4, name, at, b"\x3b")
        assert verify(q4).problems == [f"{name}: was changed after it was written (SHA-256 is another)"]
        q4.write_bytes(whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_counted(q4: Path, bad: float) -> None:
    for at in (0, 18 * 2):
        overwrite(q4, "blk.0.attn_q.weight", at, np.float16(bad).tobytes())
    problems = verify(q4).problems
    assert problems[0] == "blk.0.attn_q.weight: 2 scales are NaN or infinite"
    assert "SHA-256" in problems[1]


@pytest.mark.parametrize("name", FORMATS)
def test_no_bad_number_of_any_format_is_missed(name: str) -> None:
    data = random_rows(name, 3, 512, 1).copy()
    assert count_not_finite(data, name) == 0
    if FORMATS[name].is_float:
        spots = [(FORMATS[name].nbytes * 5, {"F32": b"\0\0\x80\x7f", "F16": b"\0\xfc", "BF16": b"\xc0\x7f"}[name])]
    else:
        assert FLOAT16_AT[name] == scale_offsets(name)
        spots = [(FORMATS[name].nbytes + at, b"\1\x7c") for at in scale_offsets(name)]
    if name == "IQ1_M":
        spots = [(56 + 48, b"\0\x10\0\0\0\xcf\xff\x7f"), (53, b"\xcf\xff\xff")]
    if name == "MXFP4":
        spots = [(FORMATS[name].nbytes, b"\xff")]
    for found, (at, raw) in enumerate(spots, 1):
        data[1, at : at + len(raw)] = np.frombuffer(raw, np.uint8)
        assert count_not_finite(data, name) == found


def test_another_source_is_named(tmp_path: Path, q4: Path) -> None:
    tiny.write_checkpoint(tmp_path / "other", "gemma2", seed=9)
    problems = verify(q4, open_source(tmp_path / "other")).problems
    assert any(
        "blk.0.attn_q.weight: relative error 1." in line and "not the source's tensor" in line for line in problems
    )
    assert "the source is not the one" in problems[-1]


def test_a_source_with_other_tensors_is_named(tmp_path: Path, q4: Path) -> None:
    tiny.write_checkpoint(tmp_path / "other", "gemma3")
    problems = verify(q4, open_source(tmp_path / "other")).problems
    assert "blk.0.attn_k_norm.weight: is not in the file" in problems
    assert "blk.6.attn_q.weight: is not in the file" in problems


def strip(path: Path) -> Path:
    """The same model without our keys, as another program writes it."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("plain.gguf"), "gemma2")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "edge_gemma.", "general.architecture")):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("plain.gguf")


def test_the_provenance_of_other_tensors_is_told(q4: Path) -> None:
    raw = q4.read_bytes()
    a, b = b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"
    q4.write_bytes(raw.replace(a, b"?" * len(a), 1).replace(b, a, 1).replace(b"?" * len(a), b, 1))
    assert verify(q4).problems == ["the provenance is that of a file of other tensors, or in another order"]


def test_a_file_without_provenance_is_checked_for_the_rest(tmp_path: Path, q4: Path) -> None:
    plain = strip(q4)
    result = verify(plain, open_source(tmp_path / "hf"))
    assert (result.problems, result.has_provenance, len(result.errors)) == ([], False, result.tensors)
    overwrite(plain, "blk.1.ffn_up.weight", 0, np.float16(np.nan).tobytes())
    assert verify(plain).problems == ["blk.1.ffn_up.weight: 1 scales are NaN or infinite"]


# ---- command line ----------------------------------------------------------------------------------------------------


def output(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    status = cli.main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command(tmp_path: Path, q4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, q4) == (0, f"{q4}: sound, {35} tensors\n", "")
    status, out, _ = output(capsys, q4, "--against", tmp_path / "hf", "--json")
    found = json.loads(out)
    assert (status, found["ok"], found["provenance"], found["problems"]) == (0, True, True, [])
    assert len(found["errors"]) == found["tensors"] == 35
    overwrite(q4, "blk.2.ffn_down.weight", 30, b"\xaa\xbb")
    status, out, _ = output(capsys, q4)
    assert status == 1
    assert out.startswith("blk.2.ffn_down.weight: was changed") and "1 problems" in out


def test_json_has_no_nan(tmp_path: Path, q4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite(q4, "blk.2.ffn_down.weight", 0, np.float16(np.nan).tobytes())
    status, out, _ = output(capsys, q4, "--against", tmp_path / "hf", "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (status, found["errors"]["blk.2.ffn_down.weight"]) == (1, None)
    assert any("relative error nan" in problem for problem in found["problems"])


def test_command_says_what_cannot_be_used(tmp_path: Path, q4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q4.write_bytes(q4.read_bytes()[:-4000])
    for arguments in ((q4,), (tmp_path / "none",), (tmp_path / "hf" / "config.json",)):
        status, out, err = output(capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("edge-gemma: error: ") and err.count("\n") == 1
