"""Embeddings: transformers' numbers, the same bits in any company, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_gemma import ContextOverflowError, Gemma, ModelFormatError
from edge_gemma.engine.encoder import steps
from edge_gemma.engine.memory_plan import MOST_TEXTS
from edge_gemma.measure.profile import profile
from tests.conftest import TinyGguf
from tests.goldens.embedding_cases import EMBEDDING_CASES, texts, texts2, write_gguf, write_gguf2
from tests.goldens.real import DATA

Floats = npt.NDArray[np.float32]
CASE = EMBEDDING_CASES["embedding-256"]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """The file of a case, made once."""
    folder = tmp_path_factory.mktemp("embedding")

    def written(name: str = CASE.name, format: str = "F32", *, with_dense: bool = True) -> Path:
        path = folder / f"{name}-{format}-{with_dense}.gguf"
        if not path.exists():
            write_gguf(EMBEDDING_CASES[name], path, format, with_dense=with_dense)
        return path

    return written


@pytest.fixture(scope="module")
def goldens() -> dict[str, Floats]:
    with np.load(DATA / "embeddings.npz") as file:
        return dict(file)


def same(a: Floats, b: Floats) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("name", EMBEDDING_CASES)
def test_embeddings_are_those_of_transformers(write: Write, goldens: dict[str, Floats], name: str) -> None:
    with Gemma(write(name), threads=2, kv_type="f32") as model:
        found = model.embed(texts(EMBEDDING_CASES[name]))
    assert found.dtype == np.float32 and np.abs(found - goldens[f"{name}/dense"]).max() < 1e-5


def test_the_second_version(tmp_path: Path, goldens: dict[str, Floats]) -> None:
    write_gguf2(tmp_path / "two.gguf")
    with Gemma(tmp_path / "two.gguf", threads=2, kv_type="f32") as model:
        found = model.embed(texts2())
        alone = np.concatenate([model.embed([text]) for text in texts2()])
    assert same(found, alone) and np.abs(found - goldens["embedding2"]).max() < 1e-5


def test_the_second_version_says_how_wide_embeddings_are(tmp_path: Path) -> None:
    write_gguf2(tmp_path / "two.gguf", width=None)
    with pytest.raises(ModelFormatError, match="embedding_length_out"):
        Gemma(tmp_path / "two.gguf")


def test_a_file_without_dense_layers_warns(write: Write, goldens: dict[str, Floats]) -> None:
    path = write(with_dense=False)
    with pytest.warns(UserWarning, match="has no dense layers"):
        model = Gemma(path, threads=1, kv_type="f32")
    with model:
        assert np.abs(model.embed(texts(CASE)) - goldens[f"{CASE.name}/pooled"]).max() < 1e-5


@pytest.mark.parametrize("format", ["F32", "Q4_0", "Q4_K"])
def test_company_does_not_matter(write: Write, format: str) -> None:
    """Alone, among more texts than a step has, in another order, with other threads."""
    rng = np.random.default_rng(1)
    many = [rng.integers(4, CASE.vocab, length).tolist() for length in (1, 300, 16, 17, 2, 700, 90)] + texts(CASE) * 5
    with Gemma(write(CASE.name, format), threads=2) as model:
        together = model.embed(many)
        alone = np.concatenate([model.embed([text]) for text in many[:8]])
    with Gemma(write(CASE.name, format), threads=1) as model:
        backwards = model.embed(many[::-1])[::-1]
    assert same(together[:8], alone) and same(together, np.ascontiguousarray(backwards))
    assert np.allclose(np.linalg.norm(together, axis=1), 1)


def test_texts_become_tokens_between_bos_and_eos(write: Write) -> None:
    with Gemma(write(), threads=1) as model:
        ids = [*model.tokenize("ab a b"), model.tokenizer.eos_id]
        assert same(model.embed("ab a b"), model.embed([ids]))
        query = [*model.tokenize("task: search result | query: ab"), model.tokenizer.eos_id]
        assert same(model.embed(["ab"], prompt="query"), model.embed([query]))
        assert model.embed([]).shape == (0, 256)


def test_fewer_dimensions_are_the_first_at_length_one(write: Write) -> None:
    with Gemma(write(), threads=1) as model:
        whole, cut = model.embed(texts(CASE)), model.embed(texts(CASE), dimensions=32)
    expected = whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True)
    assert cut.shape == (4, 32) and np.allclose(cut, expected, atol=1e-6)


def test_texts_that_are_too_long(write: Write) -> None:
    with Gemma(write(), 8, threads=1) as model:
        ids = [2, 5, 6, 7, 8, 9, 10, 11, 12, 1]
        with pytest.raises(ContextOverflowError, match=r"texts\[1\]: 10 tokens do not fit the context of 8"):
            model.embed([[2, 1], ids])
        assert same(model.embed([ids], truncate=True), model.embed([[*ids[:7], 1]]))


def test_what_is_refused(write: Write, tiny_gguf: TinyGguf) -> None:
    with Gemma(write(), threads=1) as model:
        for call in (lambda: model.generate("a"), lambda: model.logits([2]), model.sequence, lambda: model.stream("a")):
            with pytest.raises(ValueError, match="embedding model, which continues no text"):
                call()
        with pytest.raises(ValueError, match="embedding model, which continues no text"):
            profile(write(), n_prompt=8, n_gen=1, threads=1)
        with pytest.raises(ValueError, match=r"prompt: 'poem' is none of the model's \(query, document\)"):
            model.embed("a", prompt="poem")
        with pytest.raises(ValueError, match="dimensions: 257"):
            model.embed("a", dimensions=257)
        with pytest.raises(TypeError, match="texts: expected"):
            model.embed(5)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=r"texts\[0\]"):
            model.embed([7])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"texts\[1\]: there must be"):
            model.embed([[2], []])
    continuing = "gemma3 is a model that continues texts"
    with Gemma(tiny_gguf("gemma3-256", "Q4_0"), threads=1) as model, pytest.raises(ValueError, match=continuing):
        model.embed("a")


def test_steps() -> None:
    assert [*steps([], 10)] == []
    assert [*steps([4, 6, 1, 10, 3], 10)] == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert [*steps([1] * (MOST_TEXTS + 1), 100)] == [range(MOST_TEXTS), range(MOST_TEXTS, MOST_TEXTS + 1)]
