"""Importance matrices as files: ours, llama.cpp's, its older ones, and broken ones."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.errors import CheckpointError, ModelFormatError
from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import blocks, imatrix, pipeline, quantize
from tests.goldens.gemma4_cases import GEMMA4_CASES, weights, write_checkpoint
from tests.quantize import tiny_checkpoint as tiny

SUMS = {"blk.1.ffn_down.weight": np.arange(96.0), "blk.0.attn_q.weight": np.linspace(1e-6, 1e6, 64)}


def write(path: Path, **changes: Any) -> Path:
    options = {"datasets": ["a.txt"], "chunks": 3, "chunk_size": 512} | changes
    imatrix.write(path, SUMS, 1536, **options)
    return path


def gguf_imatrix(path: Path, tensors: dict[str, Any], **keys: Any) -> Path:
    """A file by the gguf package, as llama.cpp writes it, but for `keys`."""
    keys = {"general.type": "imatrix", "imatrix.datasets": ["wiki.txt"], "imatrix.chunk_count": 7} | keys
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # llama.cpp writes no architecture
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, np.asarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(sums: Any, counts: Any, name: str = "blk.0.attn_q.weight") -> dict[str, Any]:
    return {f"{name}.in_sum2": np.float32(sums), f"{name}.counts": np.float32(counts)}


def legacy(entries: list[tuple[str, int, Any]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts += [struct.pack("<i", len(name)), name.encode(), struct.pack("<ii", calls, len(values))]
        parts.append(np.asarray(values, "<f4").tobytes())
    return b"".join(parts) + tail


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = imatrix.load(write(tmp_path / "i.gguf"))
    assert (read.datasets, read.chunks) == (("a.txt",), 3)
    assert read.means.keys() == SUMS.keys()
    for name, sums in SUMS.items():
        assert read.means[name].dtype == np.float32
        np.testing.assert_allclose(read.means[name], sums / 1536, rtol=1e-6)


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    """Keys, their types, names, shapes and order as common/imatrix-loader.cpp expects and tools/imatrix writes them."""
    reader = gguf.GGUFReader(write(tmp_path / "i.gguf"))
    fields = {name: (f.types, f.contents()) for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    kind = gguf.GGUFValueType
    assert fields == {
        "general.type": ([kind.STRING], "imatrix"),
        "imatrix.datasets": ([kind.ARRAY, kind.STRING], ["a.txt"]),
        "imatrix.chunk_count": ([kind.UINT32], 3),
        "imatrix.chunk_size": ([kind.UINT32], 512),
    }
    tensors = {t.name: (t.tensor_type.name, t.data.tolist()) for t in reader.tensors}
    expected = {}
    for name in sorted(SUMS):
        expected[f"{name}.in_sum2"] = ("F32", SUMS[name].astype(np.float32).tolist())
        expected[f"{name}.counts"] = ("F32", [1536.0])
    assert tensors == expected and list(tensors) == list(expected)


def test_a_file_says_which_matrix_it_was_made_with(tmp_path: Path) -> None:
    """Under llama-quantize's keys; the matrix by its name alone, for where it lay is nobody's business."""
    weights = tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    columns = weights["model.layers.0.self_attn.q_proj.weight"].shape[1]
    sums = {f"blk.{layer}.attn_q.weight": np.ones(columns) for layer in range(2)}
    imatrix.write(tmp_path / "m.gguf", sums, 1536, datasets=["a.txt"], chunks=3, chunk_size=512)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q4_1", imatrix=tmp_path / "m.gguf")
    quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", "Q8_0", requantize=True)
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    kind = gguf.GGUFValueType
    found = {name: (f.types, f.contents()) for name, f in fields.items() if name.startswith("quantize.")}
    assert found == {
        "quantize.imatrix.file": ([kind.STRING], "m.gguf"),
        "quantize.imatrix.dataset": ([kind.STRING], "a.txt"),
        "quantize.imatrix.entries_count": ([kind.UINT32], 2),
        "quantize.imatrix.chunks_count": ([kind.UINT32], 3),
    }
    assert not any(name.startswith("quantize.") for name in gguf.GGUFReader(tmp_path / "again.gguf").fields)


def test_a_matrix_whose_mean_is_less_than_any_float_is_one_of_zeros(tmp_path: Path) -> None:
    weights = tiny.write_checkpoint(tmp_path / "hf", "gemma2")
    columns = weights["model.layers.0.self_attn.q_proj.weight"].shape[1]
    made = []
    for kind, least in (("zeros", 0.0), ("faint", 1e-45)):
        (tmp_path / kind).mkdir()
        sums = {"blk.0.attn_q.weight": np.eye(1, columns)[0] * least}
        imatrix.write(tmp_path / kind / "m.gguf", sums, 1, datasets=["a.txt"], chunks=3, chunk_size=512)
        quantize(tmp_path / "hf", tmp_path / kind / "out.gguf", "Q4_1", imatrix=tmp_path / kind / "m.gguf")
        made.append((tmp_path / kind / "out.gguf").read_bytes())
    assert made[0] == made[1]


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    a = write(tmp_path / "a.gguf").read_bytes()
    imatrix.write(tmp_path / "b", dict(reversed(SUMS.items())), 1536, datasets=["a.txt"], chunks=3, chunk_size=512)
    assert (tmp_path / "b").read_bytes() == a


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "i.gguf")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="--force"):
        write(path, chunks=4)
    assert path.read_bytes() == before
    write(path, chunks=4, force=True)
    assert imatrix.load(path).chunks == 4
    assert [p.name for p in tmp_path.iterdir()] == ["i.gguf"]


def test_llama_cpps_file_is_read(tmp_path: Path) -> None:
    """Two dimensions, as older versions write; sums of the values themselves, as newer ones add; no chunk size."""
    tensors = pair([[2, 4, 6]], [[2]]) | {"blk.0.attn_q.weight.in_sum": np.float32([[1, -1, 1]])}
    read = imatrix.load(gguf_imatrix(tmp_path / "i.gguf", tensors))
    assert {k: v.tolist() for k, v in read.means.items()} == {"blk.0.attn_q.weight": [1, 2, 3]}
    assert (read.datasets, read.chunks) == (("wiki.txt",), 7)


def test_a_matrix_that_saw_nothing_has_ones(tmp_path: Path) -> None:
    read = imatrix.read(gguf_imatrix(tmp_path / "i.gguf", pair([0, 0], [0])))
    assert read["blk.0.attn_q.weight"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({}, {}, "has no entries"),
        (pair([1, 2], [1]), {"general.type": "model"}, "general.type.*no importance matrix"),
        ({"blk.0.attn_q.weight.in_sum2": np.float32([1])}, {}, r"attn_q\.weight\.counts: is missing"),
        (pair([1, np.nan], [1]), {}, "blk.0.attn_q.weight: .*NaN"),
        (pair([1, np.inf], [1]), {}, "infinite"),
        (pair([1, -1], [1]), {}, "negative"),
        (pair([1, 1], [-1]), {}, "count of -1"),
        (pair([1, 1], [np.inf]), {}, "count of inf"),
        (pair([1, 1, 2], [1, 1]), {}, "3 sums for 2 experts"),
        (pair([[1, 1], [2, 2]], [[1], [-1]]), {}, "count of -1"),
        (pair([1, 1], [1]) | {"blk.0.attn_q.weight.counts": np.float16([1])}, {}, "is F16, expected F32"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, tensors: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    path = gguf_imatrix(tmp_path / "i.gguf", tensors, **keys)
    with pytest.raises(ModelFormatError, match=message) as error:
        imatrix.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("tail", [b"", struct.pack("<i", 9), struct.pack("<ii", 9, 5) + b"a.txt"])
def test_the_older_format_is_read(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([("blk.0.attn_k.weight", 4, [4, 8]), ("output.weight", 1, [3])], tail))
    read = imatrix.load(path)
    assert {k: v.tolist() for k, v in read.means.items()} == {"blk.0.attn_k.weight": [1, 2], "output.weight": [3]}
    assert read.chunks == (9 if tail else 0)
    assert read.datasets == (("a.txt",) if len(tail) > 4 else ())


def test_every_cut_of_the_older_format_is_refused_or_whole(tmp_path: Path) -> None:
    whole, path = legacy([("blk.0.attn_k.weight", 4, [4, 8])]), tmp_path / "imatrix.dat"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError, match="cut off"):
            imatrix.read(path)


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_an_error_or_an_importance_matrix(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "imatrix.dat"
    path.write_bytes(raw)
    try:
        means = imatrix.read(path)
    except ModelFormatError as error:
        assert str(path) in str(error)
    else:
        assert all((values >= 0).all() for values in means.values())


def test_another_file_is_told_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("root:x:0:0\n")
    with pytest.raises(ModelFormatError, match=r"text: beginning at byte 4: this is no importance matrix"):
        imatrix.read(tmp_path / "text")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        imatrix.read(tmp_path / "none")


# ---- experts -----------------------------------------------------------------------------------------------------

GATE_UP = "blk.1.ffn_gate_up_exps.weight"


def test_experts_have_rows_and_counts_of_their_own(tmp_path: Path) -> None:
    """As llama.cpp writes them; one that saw nothing has ones."""
    read = imatrix.load(gguf_imatrix(tmp_path / "i.gguf", pair([[2, 4], [0, 0], [6, 3]], [[2], [0], [3]], GATE_UP)))
    assert read.means[GATE_UP].tolist() == [[1, 2], [1, 1], [2, 1]] and read.unseen == 1


def test_what_is_written_of_experts_is_llama_cpps(tmp_path: Path) -> None:
    sums = {GATE_UP: np.float64([[2, 4, 8], [0, 0, 0]])}
    imatrix.write(tmp_path / "i", sums, {GATE_UP: np.array([4, 0])}, datasets=["a"], chunks=1, chunk_size=4)
    shapes = {t.name: (t.shape.tolist(), t.data.tolist()) for t in gguf.GGUFReader(tmp_path / "i").tensors}
    assert shapes == {
        f"{GATE_UP}.in_sum2": ([3, 2], [[2, 4, 8], [0, 0, 0]]),
        f"{GATE_UP}.counts": ([1, 2], [[4], [0]]),
    }
    read = imatrix.load(tmp_path / "i")
    made = imatrix.of_sums(sums, {GATE_UP: np.array([4, 0])}, datasets=["a"], chunks=1)
    assert read.means[GATE_UP].tolist() == made.means[GATE_UP].tolist() == [[0.5, 1, 2], [1, 1, 1]]
    assert read.unseen == made.unseen == 1


def moe(folder: Path) -> tuple[Path, dict[str, Any]]:
    case = GEMMA4_CASES["gemma4-26b"]
    write_checkpoint(case, folder / "hf")
    return folder / "hf", weights(case)


def blocks_of(path: Path, name: str) -> Any:
    with GgufFile.open(path) as file:
        tensor = file.tensors[name]
        return file.data(tensor).reshape(*tensor.shape[:-1], -1).copy()


@pytest.mark.parametrize("slab_values", [1 << 20, 96 * 50])
def test_each_expert_is_rounded_with_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab_values: int
) -> None:
    """As if it were a matrix of its own, whatever the slabs; one that saw no token as without an importance matrix."""
    monkeypatch.setattr(pipeline, "SLAB_VALUES", slab_values)
    folder, tensors = moe(tmp_path)
    rng = np.random.default_rng(5)
    means = rng.uniform(0, 1, (8, 96)) ** 4
    counts = np.array([5, 1, 0, 2, 9, 3, 4, 8])
    imatrix.write(
        tmp_path / "m", {GATE_UP: means * counts[:, None]}, {GATE_UP: counts}, datasets=["a"], chunks=1, chunk_size=4
    )
    report = quantize(folder, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "m")
    assert report.notices == (
        "importance matrix: the text reached none of 1 matrices of experts: they have equal weights",
    )
    found = blocks_of(tmp_path / "out.gguf", GATE_UP)
    source = tensors["model.layers.1.experts.gate_up_proj"]
    for expert in range(8):
        own = np.float32(means[expert]) / np.float32(means[expert].mean()) if counts[expert] else np.ones(96)
        weights_ = np.maximum(own, 1e-3).astype(np.float32)
        plain = blocks.encode(source[expert], "Q4_0")
        weighted = blocks.encode(source[expert], "Q4_0", weights_)
        assert not np.array_equal(plain, weighted)
        assert (found[expert] != weighted).mean() < 1e-3, expert  # means differ in their last bit


def test_one_row_for_all_experts_is_taken_for_each(tmp_path: Path) -> None:
    folder, _ = moe(tmp_path)
    means = np.random.default_rng(1).uniform(0, 1, 96)
    for name, sums in (("one", means), ("each", np.tile(means, (8, 1)))):
        counts = {GATE_UP: np.full(1 if name == "one" else 8, 1)}
        imatrix.write(tmp_path / name, {GATE_UP: sums}, counts, datasets=["a"], chunks=1, chunk_size=4)
        quantize(folder, tmp_path / f"{name}.gguf", "Q4_K_M", imatrix=tmp_path / name)
    assert np.array_equal(*(blocks_of(tmp_path / f"{name}.gguf", GATE_UP) for name in ("one", "each")))


def test_an_importance_matrix_of_other_experts_is_refused(tmp_path: Path) -> None:
    folder, _ = moe(tmp_path)
    imatrix.write(
        tmp_path / "m", {GATE_UP: np.ones((4, 96))}, {GATE_UP: np.ones(4, int)}, datasets=["a"], chunks=1, chunk_size=4
    )
    with pytest.raises(CheckpointError, match=r"ffn_gate_up_exps.weight has 384 columns, not 768"):
        quantize(folder, tmp_path / "out.gguf", "Q4_0", imatrix=tmp_path / "m")
