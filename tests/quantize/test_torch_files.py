"""Files of torch.save: what torch wrote is read as it is; what could run code is refused and never runs."""

import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize import quantize
from edge_gemma.quantize.checkpoint import torch_file, torch_pickle
from edge_gemma.quantize.checkpoint.folder import CheckpointFolder
from edge_gemma.quantize.checkpoint.stored_tensor import StoredTensor
from edge_gemma.quantize.checkpoint.torch_file import read_torch
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build

DATA = Path(__file__).parent / "data"


def ramp(*shape: int) -> NDArray[np.float32]:
    """As in tools/goldens/record_torch_files.py."""
    return (np.arange(np.prod(shape), dtype=np.float32) / 2).reshape(shape)


def values(tensor: StoredTensor) -> NDArray[np.float32]:
    rows = int(np.prod(tensor.shape[:-1]))
    return tensor.rows(0, rows).reshape(tensor.shape)


RECORDED: dict[str, dict[str, NDArray[np.float32]]] = {
    "dtypes.bin": {"f32": ramp(2, 3), "f16": ramp(2, 3), "bf16": ramp(2, 3), "vector": ramp(5)},
    "views.bin": {
        "whole": ramp(6, 4),
        "rows": ramp(6, 4)[2:5],
        "vector": ramp(6, 4)[1],
        "single": ramp(6, 4)[3:4, :1],
    },
    "tied.bin": {"first.weight": ramp(4, 3), "second.weight": ramp(4, 3)},
    "parameters.bin": {"a": ramp(2, 2), "b": ramp(3)},
    **{f"protocol-{number}.bin": {"a": ramp(4, 2), "b": ramp(3)} for number in (2, 3, 4, 5)},
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_torch_saved_is_read(name: str) -> None:
    found = read_torch(DATA / name)
    assert list(found) == list(RECORDED[name])
    for key, expected in RECORDED[name].items():
        assert found[key].shape == expected.shape and np.array_equal(values(found[key]), expected), key


def test_dtypes_are_those_of_torch() -> None:
    found = read_torch(DATA / "dtypes.bin")
    assert {name: tensor.format.name for name, tensor in found.items()} == {
        "f32": "F32",
        "f16": "F16",
        "bf16": "BF16",
        "vector": "F32",
    }


REFUSED = {
    "transposed.bin": r"tensor 'a' of shape \[3, 2\] and strides \[1, 3\] is a view with gaps or transposed",
    "expanded.bin": r"tensor 'a' .*strides \[0, 1\]",
    "int64.bin": "tensor 'a' has a LongStorage; F32, F16 and BF16 are read",
    "float64.bin": "tensor 'a' has a DoubleStorage",
    "nested.bin": "'model' is a dict, not a tensor",
    "tensor.bin": "holds a TensorEntry, not a dict",
    "whole-module.bin": r"asks for torch\.nn\.modules\.linear\.Linear.*not imported",
    "program.bin": "a TorchScript program",
    "legacy.bin": r"PyTorch before 1\.6.*torch\.save\(torch\.load\(path, weights_only=True\), path\)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_tensors_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]) as caught:
        read_torch(DATA / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_old_tar_files_are_told_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"tensors".ljust(257, b"\0") + b"ustar" + bytes(800))
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_torch(tmp_path / "a.pt")


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def attacks(canary: str) -> dict[str, bytes]:
    """Pickles that create `canary` when they are loaded by Python."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    direct = {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "mkdir": Call(os.mkdir, canary),
        "in a value": {"weight": Call(os.system, touch)},
        "in a key": {(1, Call(os.system, touch)): 1},
        "chain": Call(print, Call(os.system, touch)),
        "state": Call(OrderedDict, state={"a": Call(exec, code)}),
    }
    pickles = {f"{k} {p}": pickle.dumps(v, protocol=p) for k, v in direct.items() for p in (2, 4, 5)}
    argument = build.text(touch)
    system = b"cposix\nsystem\n" if os.name == "posix" else b"cnt\nsystem\n"
    return pickles | {
        "protocol 0": b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        "INST": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(" + system + argument + b"o.",
        "stack name": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + argument + b"\x85R.",
        "dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x94h\x00" + argument + b"\x85R.",
        "before the tensors": b"\x80\x02" + system + argument + b"\x85R0}.",
        "after a good name": b"\x80\x02ccollections\nOrderedDict\n)R0" + system + argument + b"\x85R.",
    }


NAMES_OF_ATTACKS = sorted(attacks("x"))


@pytest.mark.parametrize("name", NAMES_OF_ATTACKS)
def test_malicious_pickles_never_run(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    attack = attacks(str(canary))[name]
    build.write_archive(tmp_path / "pytorch_model.bin", attack, {})
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: data\.pkl: "):
        CheckpointFolder(tmp_path).tensors()
    assert not canary.exists()
    with suppress(TypeError):  # a call of what the attack returned
        pickle.loads(attack)  # the attack is one
    assert canary.exists()


def test_bare_pickles_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, attack in attacks(str(canary)).items():
        (tmp_path / "pytorch_model.bin").write_bytes(attack)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a file of torch.save"):
            CheckpointFolder(tmp_path).tensors()
        assert not canary.exists(), name


def bombs() -> dict[str, tuple[bytes, str]]:
    """Pickles that take memory, time or stack out of proportion to their size, or break the machine's rules."""
    doubled = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    store, five, outside = (build.storage(key, "FloatStorage", n) for key, n in (("0", 4), ("0", 5), ("../0", 4)))
    return {
        "memo index": (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
        "shared tuples as a key": (b"\x80\x02}K\x01K\x01\x86q\x00" + doubled + b"h\x00K\x01s.", "nested deeper"),
        "deep tuples": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "nested deeper"),
        "wide tuples": (b"\x80\x02(" + b"N" * 300_000 + b"tq\x00" + b"h\x00\x85" * 200_000 + b".", "of 300000 values"),
        "deep lists": (b"\x80\x02" + b"](" * 100_000 + b".", "EMPTY_LIST"),
        "deep dicts": (b"\x80\x02" + (b"}" + build.text("a")) * 50_000 + b"}" + b"s" * 50_000 + b".", "is a dict"),
        "marks": (b"\x80\x02" + b"(" * 500_000 + b".", "more from its stack"),
        "many instructions": (b"\x80\x02" + b")0" * 600_000 + b".", "POP"),
        "endless": (b"\x80\x02" + b"N" * (torch_pickle.MAX_INSTRUCTIONS + 1) + b".", "more than"),
        "long text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.", "expected"),
        "long integer": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "not enough data"),
        "nothing": (b"", "ran out|exhausted"),
        "no stop": (b"\x80\x02}", "exhausted"),
        "empty stack": (b"\x80\x02.", "more from its stack"),
        "unknown memo": (b"\x80\x02h\x07.", "never set"),
        "unknown instruction": (b"\x80\x02\xff.", "unknown"),
        "item of nothing": (b"\x80\x02K\x01K\x02s.", "no dict"),
        "odd items": (b"\x80\x02}(K\x01u.", "no dict"),
        "tuple as key": (b"\x80\x02})K\x02s.", "no text"),
        "twice": (b"\x80\x02}(" + (build.text("a") + b"N") * 2 + b"u.", "'a' appears twice"),
        "attributes of a number": (b"\x80\x02K\x01}b.", "no dict"),
        "reference to a number": (b"\x80\x02K\x01Q.", "no storage"),
        "call of a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "maker"),
        "call of a text": (b"\x80\x02" + build.text("eval") + b")R.", "maker"),
        "negative storage": (build.table({"a": build.storage("0", "FloatStorage", -1)}), "no storage"),
        "negative offset": (build.table({"a": build.tensor(store, -1, [2], [1])}), "bad offset"),
        "few strides": (build.table({"a": build.tensor(store, 0, [2, 2], [1])}), "bad strides"),
        "zero dimension": (build.table({"a": build.tensor(store, 0, [0], [1])}), "every dimension"),
        "no dimension": (build.table({"a": build.tensor(store, 0, [], [])}), "bad shape"),
        "huge dimension": (build.table({"a": build.tensor(store, 0, [2**40], [1])}), "every dimension"),
        "beyond the storage": (build.table({"a": build.tensor(store, 1, [4], [1])}), "ends beyond its storage"),
        "huge offset": (build.table({"a": build.tensor(store, 2**62, [4], [1])}), "ends beyond its storage"),
        "longer than stored": (build.table({"a": build.tensor(five, 0, [4], [1])}), "16 bytes"),
        "storage elsewhere": (build.table({"a": build.tensor(outside, 0, [4], [1])}), "not in the"),
        "module of torch": (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "not imported"),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_and_broken_rules(tmp_path: Path, name: str) -> None:
    data, message = bombs()[name]
    build.write_archive(tmp_path / "a.bin", data, {"0": bytes(16)})
    if not message:
        assert read_torch(tmp_path / "a.bin") == {}
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_torch(tmp_path / "a.bin")
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def good_archive(path: Path) -> None:
    build.write_torch(path, {"a": ramp(2, 3), "b": ramp(4)})


def edit(path: Path, find: bytes, put: bytes) -> None:
    data = path.read_bytes()
    assert len(find) == len(put) and find in data
    path.write_bytes(data.replace(find, put))


def test_archives_that_break_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", build.EMPTY)
    with pytest.raises(CheckpointError, match=r"member 'archive/data\.pkl' is compressed"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/other.pkl", build.EMPTY)
    with pytest.raises(CheckpointError, match=r"0 members data\.pkl"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", build.EMPTY)
        archive.writestr("b/data.pkl", build.EMPTY)
    with pytest.raises(CheckpointError, match=r"2 members data\.pkl"):
        read_torch(path)
    good_archive(path)
    edit(path, b"archive/data/0", b"archive/data/1")
    with pytest.raises(CheckpointError, match="'archive/data/1' appears twice"):
        read_torch(path)
    good_archive(path)
    edit(path, b"little", b"bigbig")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch(path)


def test_directory_of_an_archive_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_archive(tmp_path / "a.bin")
    monkeypatch.setattr(torch_file, "MAX_DIRECTORY", 100)
    with pytest.raises(CheckpointError, match="damaged"):
        read_torch(tmp_path / "a.bin")


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    good_archive(tmp_path / "a.bin")
    data = (tmp_path / "a.bin").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.bin").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"b\.bin"):
            read_torch(tmp_path / "b.bin")


def test_a_file_cut_off_while_it_is_read(tmp_path: Path) -> None:
    good_archive(tmp_path / "a.bin")
    tensor = read_torch(tmp_path / "a.bin")["b"]
    os.truncate(tmp_path / "a.bin", 100)
    with pytest.raises(CheckpointError, match="cut off while it was being read"):
        tensor.rows(0, 1)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_folder_of_torch_files_becomes_the_same_model(tmp_path: Path, name: str, dtype: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", dtype=dtype)
    quantize(tmp_path / "hf", tmp_path / "a.gguf")
    (tmp_path / "hf/model.safetensors").unlink()
    build.write_torch(tmp_path / "hf" / name, tensors, dtype)
    (tmp_path / "hf/training_args.bin").write_bytes(b"what a trainer leaves")
    quantize(tmp_path / "hf", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_shards_of_torch_files(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    quantize(tmp_path / "hf", tmp_path / "a.gguf")
    (tmp_path / "hf/model.safetensors").unlink()
    build.write_shards(tmp_path / "hf", tensors, 3)
    quantize(tmp_path / "hf", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    (tmp_path / "hf/pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00003\.bin: missing"):
        CheckpointFolder(tmp_path / "hf").tensors()
    (tmp_path / "hf/pytorch_model.bin.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"2 files of \.bin/\.pt/\.pth need pytorch_model\.bin\.index\.json"):
        CheckpointFolder(tmp_path / "hf").tensors()


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path)
    shutil.copy(DATA / "legacy.bin", tmp_path / "pytorch_model.bin")
    assert all(t.file.path.name == "model.safetensors" for t in CheckpointFolder(tmp_path).tensors().values())
