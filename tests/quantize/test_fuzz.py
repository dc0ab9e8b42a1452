"""Valid inputs changed in their structure: each is converted, or refused by a CheckpointError of one line."""

import copy
import json
import pickletools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_gemma.errors import CheckpointError
from edge_gemma.quantize.checkpoint.folder import SAFETENSORS, TORCH, CheckpointFolder
from edge_gemma.quantize.checkpoint.hf_config import read_model
from edge_gemma.quantize.checkpoint.hf_source import open_folder
from edge_gemma.quantize.checkpoint.lora import open_adapter
from edge_gemma.quantize.checkpoint.safetensors import read_safetensors
from edge_gemma.quantize.checkpoint.special_tokens import read_special_tokens
from edge_gemma.quantize.checkpoint.stored_tensor import StoredTensor
from edge_gemma.quantize.checkpoint.torch_file import read_torch
from edge_gemma.quantize.checkpoint.vocabulary import read_vocabulary
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize import torch_builder as build

DATA = Path(__file__).parent / "data"
ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**64,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "F16",
    "\ud800",
    "../x",
    [],
    {},
    [[1]],
    {"a": [1]},
]
SEEDS = st.integers(0, 2**64 - 1)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test with a parameter `seed`, run for so many of them."""
    checks = [HealthCheck.function_scoped_fixture]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return settings(max_examples=examples, deadline=None, suppress_health_check=checks)(given(seed=SEEDS)(test))

    return decorate


def accepted(act: Callable[[], Any]) -> Any:
    """What `act` returns, None if it refuses by a message of one short line."""
    try:
        return act()
    except CheckpointError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return None


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document))
    found = [(document, key) for key in keys]
    for key in keys:
        if isinstance(document[key], dict | list):
            found += places(document[key])
    return found


def changed(document: Any, rng: random.Random) -> Any:
    """A copy of `document` with one to three places changed."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        choices = places(document)
        if choices:
            _change(*rng.choice(choices), rng, choices)
    return document


def _change(container: Any, key: Any, rng: random.Random, choices: list[tuple[Any, Any]]) -> None:
    value = container[key]
    match rng.randrange(6):
        case 0:
            del container[key]
        case 1:
            container[key] = copy.deepcopy(rng.choice(ODD))
        case 2 if type(value) in (int, float):
            container[key] = rng.choice([value + 1, value - 1, -value, value * 2, value * 2**32, str(value)])
        case 3 if isinstance(container, dict):
            container[f"{key}x"] = container.pop(key)
        case 4 if isinstance(container, list):
            container.append(copy.deepcopy(value))
        case _:
            other, name = rng.choice(choices)
            container[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else None


def read_all(tensors: dict[str, StoredTensor] | None) -> None:
    """Touch every byte of what was accepted."""
    for tensor in (tensors or {}).values():
        rows = int(np.prod(tensor.shape[:-1], dtype=object))
        assert tensor.rows(0, rows).size == np.prod(tensor.shape)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of three shards in each container, by the name of its index."""
    safe, torch = tmp_path_factory.mktemp("safetensors"), tmp_path_factory.mktemp("torch")
    tensors = tiny.write_checkpoint(safe, num_hidden_layers=1, shards=3, tokenizer="json")
    build.write_shards(torch, tensors, 3)
    return {SAFETENSORS.index: safe, TORCH.index: torch}


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [1, 2, 1], "data_offsets": [32, 36]},
}


@fuzz(1500)
def test_safetensors_headers(work: Path, seed: int) -> None:
    header = json.dumps(changed(HEADER, random.Random(seed))).encode()
    tiny.write_raw_safetensors(work / "x.safetensors", header, bytes(36))
    read_all(accepted(lambda: read_safetensors(work / "x.safetensors")))


@fuzz(300)
def test_indexes(folders: dict[str, Path], seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice([SAFETENSORS.index, TORCH.index])
    with changed_file(folders[name] / name, rng):
        read_all(accepted(lambda: CheckpointFolder(folders[name]).tensors()))


@contextmanager
def changed_file(path: Path, rng: random.Random) -> Iterator[None]:
    """A JSON file that is changed for a while."""
    before = path.read_text()
    path.write_text(json.dumps(changed(json.loads(before), rng)))
    try:
        yield
    finally:
        path.write_text(before)


@fuzz(1500)
def test_configs(seed: int) -> None:
    rng = random.Random(seed)
    architecture = rng.choice(["gemma", "gemma2", "gemma3"])
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types": ["full_attention"] * 7}
    config = tiny.make_config(architecture, tie_word_embeddings=True, **rng.choice([{}, scaling]))
    if rng.random() < 0.3:
        config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}}
    model = accepted(lambda: read_model(changed(config, rng)))
    if model is not None:
        assert model.config.layers and model.config.tensors()


@fuzz(150)
def test_folders(folders: dict[str, Path], seed: int) -> None:
    rng = random.Random(seed)
    folder = folders[SAFETENSORS.index]
    with changed_file(folder / rng.choice(["config.json", "tokenizer_config.json", "tokenizer.json"]), rng):
        accepted(lambda: open_folder(folder))


@fuzz(300)
def test_tokenizers(work: Path, seed: int) -> None:
    rng = random.Random(seed)
    documents = {"tokenizer.json": tiny.tokenizer_json(), "tokenizer_config.json": tiny.tokenizer_config()}
    name = rng.choice(list(documents))
    documents[name] = changed(documents[name], rng)
    for file, document in documents.items():
        (work / file).write_text(json.dumps(document))
    folder = CheckpointFolder(work)
    vocabulary = accepted(lambda: read_vocabulary(folder, rng.choice([None, tiny.VOCAB, tiny.VOCAB + 8])))
    if vocabulary is not None:
        assert len(vocabulary.tokens) == len(vocabulary.scores) == len(vocabulary.types)
        accepted(lambda: read_special_tokens(folder, vocabulary, {}))


@fuzz(500)
def test_sentencepiece_models(work: Path, seed: int) -> None:
    rng = random.Random(seed)
    (work / "spm").mkdir(exist_ok=True)
    model = damaged(tiny.sentencepiece_model(), rng, rng.randrange(len(tiny.sentencepiece_model())))
    (work / "spm/tokenizer.model").write_bytes(model)
    accepted(lambda: read_vocabulary(CheckpointFolder(work / "spm"), None))


@fuzz(700)
def test_adapters(work: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = DATA / rng.choice(["adapter-gemma2", "adapter-patterns", "adapter-multimodal"])
    config = json.loads((source / "adapter_config.json").read_text())
    header, body = split((source / "adapter_model.safetensors").read_bytes())
    if rng.random() < 0.5:
        config = changed(config, rng)
    else:
        header = changed(header, rng)
    (work / "adapter_config.json").write_text(json.dumps(config))
    tiny.write_raw_safetensors(work / "adapter_model.safetensors", json.dumps(header).encode(), body)
    adapter = accepted(lambda: open_adapter(work))
    for delta in adapter.deltas.values() if adapter else ():
        assert delta.rows(0, delta.shape[0]).shape == delta.shape


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of safetensors."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def instructions(pickle: bytes) -> list[bytes]:
    """A pickle cut into its instructions."""
    starts = [position for _, _, position in pickletools.genops(pickle)]
    return [pickle[a:b] for a, b in zip(starts, [*starts[1:], len(pickle)], strict=True)]


EVERY_INSTRUCTION = [code.code.encode("latin-1") for code in pickletools.opcodes]
ARGUMENTS = [b"", b"\0", b"\xff" * 4, b"\x01\0\0\0", b"os\nsystem\n", b"7\n", b"\xff" * 8]


@fuzz(2000)
def test_pickles(work: Path, seed: int) -> None:
    """Instructions left out, repeated, exchanged and put in."""
    rng = random.Random(seed)
    name = rng.choice(["dtypes.bin", "tied.bin", "parameters.bin", "protocol-2.bin", "protocol-5.bin"])
    pickle, storages = archive(DATA / name)
    parts = instructions(pickle)
    for _ in range(rng.randint(1, 4)):
        a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(5):
            case 0:
                parts[a] = b""
            case 1:
                parts[a] = parts[b]
            case 2:
                parts[a], parts[b] = parts[b], parts[a]
            case 3:
                parts[a] += rng.choice(EVERY_INSTRUCTION) + rng.choice(ARGUMENTS)
            case 4:
                parts[a] = damaged(parts[a] or b"0", rng, 0)
    build.write_archive(work / "x.bin", b"".join(parts), storages)
    read_all(accepted(lambda: read_torch(work / "x.bin")))


def archive(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a recorded file."""
    import zipfile

    with zipfile.ZipFile(path) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    return members["data.pkl"], {n.removeprefix("data/"): d for n, d in members.items() if n.startswith("data/")}


def damaged(data: bytes, rng: random.Random, start: int) -> bytes:
    """One to four bytes from `start` on changed."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(start, len(out))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(out)


@fuzz(1500)
def test_archives(work: Path, seed: int) -> None:
    """Bytes of headers and of the table of contents changed, the file cut off or put behind something."""
    rng = random.Random(seed)
    data = (DATA / rng.choice(["dtypes.bin", "views.bin", "protocol-4.bin", "program.bin"])).read_bytes()
    start = rng.choice([0, data.index(b"PK\x01\x02"), len(data) - 22])
    data = damaged(data, rng, start)
    match rng.randrange(8):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            data = bytes(rng.randrange(100)) + data
        case 2:
            data += bytes(rng.randrange(100))
    (work / "y.bin").write_bytes(data)
    read_all(accepted(lambda: read_torch(work / "y.bin")))
