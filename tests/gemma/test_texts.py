"""What text comes of the tokens of an answer, by a model that says one thing only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_gemma import Gemma
from tests.gguf_builder import BOOL, CONTROL, SMALL_VOCABULARY, runnable_gemma, typed

SPACE_A = 264  # "\u2581a"
Speaker = Callable[..., AbstractContextManager[Gemma]]


@pytest.fixture
def speaker(tmp_path: Path) -> Speaker:
    """`speaker(token, prefix=False)`: a model that always finds `token` best."""

    @contextmanager
    def opened(token: int, *, prefix: bool = False) -> Iterator[Gemma]:
        builder = runnable_gemma("gemma2", [*SMALL_VOCABULARY, ("<|im_end|>", 0.0, CONTROL)])
        builder.set("tokenizer.ggml.add_space_prefix", typed(BOOL, int(prefix)))
        embedding = builder.tensor("token_embd.weight")
        rows = np.full(embedding.dims[::-1], 0.01, np.float16)
        rows[token] = 0.02
        embedding.data = rows.tobytes()
        (tmp_path / "model.gguf").write_bytes(builder.build())
        with Gemma(tmp_path / "model.gguf", threads=1) as model:
            yield model

    return opened


@pytest.mark.parametrize("prefix", [False, True])
def test_the_first_space_of_a_continuation_stays(speaker: Speaker, prefix: bool) -> None:
    with speaker(SPACE_A, prefix=prefix) as model:
        stream = model.stream("a", max_tokens=3, temperature=0.0)
        assert list(stream) == [" a", " a", " a"]
        assert stream.completion.text == " a a a"
        ids = [*model.tokenize("a"), *stream.completion.token_ids]
        assert model.detokenize(ids) == "a a a a"


@pytest.mark.parametrize(("prefix", "text"), [(False, " a a"), (True, "a a")])
def test_a_text_from_nothing_has_no_space_of_the_vocabularys_own(speaker: Speaker, prefix: bool, text: str) -> None:
    with speaker(SPACE_A, prefix=prefix) as model:
        assert model.generate("", max_tokens=2, temperature=0.0).text == text


def test_the_end_of_a_chat_formats_turn_ends_an_answer(speaker: Speaker) -> None:
    with speaker(len(SMALL_VOCABULARY)) as model:
        answer = model.generate("a", max_tokens=5, temperature=0.0)
        assert (answer.text, answer.finish_reason) == ("", "stop")
        assert answer.token_ids == [len(SMALL_VOCABULARY)]
