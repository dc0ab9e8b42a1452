"""Several answers from one call: choices of a prompt, many prompts, tasks of an event loop. Each is as if alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_gemma import Completion, EdgeGemmaError, Gemma
from edge_gemma.engine.sampler import Sampler, SamplingParams
from tests.gemma.helpers import GREEDY, PROMPT, as_tuple, workers

HOT: dict[str, Any] = {"temperature": 3.0, "top_k": 0, "seed": 5}


def endless(model: Gemma) -> None:
    """Have answers end by their length only."""
    model.tokenizer.eog_ids = frozenset()


def pages(model: Gemma) -> int:
    gc.collect()
    return model.stats().page_bytes


def soon(model: Gemma, running: int = 0) -> None:
    """Return when so many sequences run, and none waits."""
    end = time.monotonic() + 30
    while (stats := model.stats()).running != running or stats.waiting:
        assert time.monotonic() < end, stats
        time.sleep(0.002)


# ---- n= --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_choices_are_what_each_is_alone(model: Gemma, path: Path, n: int) -> None:
    """Choice 0 is the answer without `n`; the others by the definition, the logits after all that there is."""
    made = model.generate(PROMPT, n=n, max_tokens=12, **HOT)
    assert as_tuple(made[0]) == as_tuple(model.generate(PROMPT, max_tokens=12, **HOT))
    assert len(made) == n and len({tuple(m.token_ids) for m in made}) > 0.8 * n
    with Gemma(path, threads=1) as fresh:
        for choice in {1, n - 1} & set(range(n)):
            sampler, text = Sampler(SamplingParams(**HOT), choice), fresh.tokenize(PROMPT)
            prompt = len(text)
            for token in made[choice].token_ids:
                text.append(sampler.sample(fresh.logits(text)[-1], None, text, len(text)))
                assert text[-1] == token
            assert len(text) - prompt == len(made[choice].token_ids)


def test_choices_read_their_prompt_once(model: Gemma) -> None:
    endless(model)
    before = model.stats().prompt_tokens
    made = model.generate([2] * 400, n=6, max_tokens=5, **HOT)
    assert model.stats().prompt_tokens - before == 400 + 5
    assert [m.usage.cached_tokens for m in made] == [0] + [399] * 5
    assert all(m.finish_reason == "length" and m.usage.completion_tokens == 5 for m in made)


def test_choices_without_a_seed_share_one(model: Gemma) -> None:
    first, again = (model.generate(PROMPT, n=2, max_tokens=12, temperature=3.0, top_k=0) for _ in range(2))
    assert first[0].token_ids != first[1].token_ids and first[0].token_ids != again[0].token_ids


@pytest.mark.parametrize("n", [0, -1, 257, 1.5, "2", True])
def test_a_wrong_number_of_choices(model: Gemma, n: Any) -> None:
    with pytest.raises(ValueError, match="n: "):
        model.generate(PROMPT, n=n)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.05])
def test_choices_that_are_cancelled(model: Gemma, delay: float) -> None:
    """While the prompt is read, or later: all end, and what there is is a beginning."""
    endless(model)
    done = threading.Event()

    def cancel() -> None:
        time.sleep(delay)
        while not done.wait(0.01):  # the first one may come before there is an answer
            model.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    made = model.generate([2] * 300, n=4, max_tokens=600, **HOT)
    done.set()
    thread.join()
    whole = model.generate([2] * 300, n=4, max_tokens=20, **HOT)
    for part, full in zip(made, whole, strict=True):
        assert part.finish_reason == "cancelled"
        assert part.token_ids[:20] == full.token_ids[: len(part.token_ids)]
    soon(model)


def test_choices_end_with_a_callback_that_fails(model: Gemma) -> None:
    def fail(_done: int, _total: int) -> None:
        raise RuntimeError("in the callback")

    with pytest.raises(RuntimeError, match="in the callback"):
        model.generate([2] * 300, n=4, max_tokens=600, on_progress=fail)
    soon(model)


# ---- generate_many ---------------------------------------------------------------------------------------------------


def test_many_prompts(path: Path) -> None:
    """More than run at a time, of all lengths, from a generator that is read as there is room."""
    prompts = [[2 + n % 50] * (1 + 7 * n % 60) for n in range(70)]
    taken = []

    def source() -> Iterator[list[int]]:
        for n, prompt in enumerate(prompts):
            taken.append(n)
            yield prompt

    with Gemma(path, threads=2, chunk=16, slots=4) as model:
        iterator = model.generate_many(source(), max_tokens=9, **HOT)
        assert taken == [], "nothing is done before it is asked for"
        made = dict([next(iterator)])
        assert len(taken) <= 9
        made |= dict(iterator)
        assert sorted(made) == list(range(70))
    with Gemma(path, threads=1) as alone:
        for n in range(0, 70, 7):
            assert as_tuple(made[n]) == as_tuple(alone.generate(prompts[n], max_tokens=9, **HOT))


def test_who_is_finished_first_comes_first(model: Gemma) -> None:
    endless(model)
    prompts = [[2] * 900, [3] * 3, [4] * 3]
    assert [n for n, _ in model.generate_many(prompts, max_tokens=4, **HOT)][-1] == 0


def test_no_prompts_and_texts(model: Gemma, expected: Completion) -> None:
    assert list(model.generate_many([])) == []
    made = list(model.generate_many((PROMPT,), max_tokens=24, **GREEDY))
    assert [(n, as_tuple(m)) for n, m in made] == [(0, as_tuple(expected))]


@pytest.mark.parametrize("prompts", ["a text", 5, None])
def test_one_prompt_in_place_of_many(model: Gemma, prompts: Any) -> None:
    with pytest.raises(TypeError, match="prompts: expected several"):
        model.generate_many(prompts)


def test_many_that_are_left(model: Gemma) -> None:
    """In the midst, by an error of the caller's, dropped, and never begun."""
    endless(model)
    iterator = model.generate_many([[2, n] for n in range(3, 40)], max_tokens=900, **HOT)
    shorter = model.generate_many(iter([[5]] * 40), max_tokens=3, **HOT)
    next(shorter)
    shorter.close()  # type: ignore[attr-defined]
    soon(model)
    unbegun = model.generate_many([[2]], max_tokens=900)
    del unbegun, iterator
    with pytest.raises(RuntimeError, match="of the caller"):
        for _ in model.generate_many([[5]] * 40, max_tokens=3):
            raise RuntimeError("of the caller")
    soon(model)


def test_a_prompt_that_is_wrong_among_many(model: Gemma) -> None:
    def source() -> Iterator[list[int]]:
        yield [2]
        raise RuntimeError("of the source")

    with pytest.raises(ValueError, match=r"prompt\[1\]: token id 9999"):
        list(model.generate_many([[2], [2, 9999], [3]], max_tokens=500))
    with pytest.raises(RuntimeError, match="of the source"):
        list(model.generate_many(source(), max_tokens=500))
    with pytest.raises(ValueError, match="temperature"):
        list(model.generate_many([[2]], temperature=-1))
    soon(model)


def test_many_when_the_model_is_closed(path: Path) -> None:
    model = Gemma(path, threads=2)
    endless(model)
    iterator = model.generate_many([[2, n] for n in range(3, 60)], max_tokens=5, **HOT)
    next(iterator)
    model.close()
    with pytest.raises(EdgeGemmaError, match="closed"):
        list(iterator)
    with pytest.raises(EdgeGemmaError, match="closed"):
        model.generate_many([[2]])
    assert workers() == []


def test_others_go_before_many(path: Path) -> None:
    with Gemma(path, threads=1, slots=1, chunk=16) as model:
        endless(model)
        done: list[str] = []

        def batch() -> None:
            for _ in model.generate_many([[2, 3]] * 12, max_tokens=40, **HOT):
                done.append("batch")

        thread = threading.Thread(target=batch)
        thread.start()
        while not done:
            time.sleep(0.001)
        model.generate([5], max_tokens=2, **HOT)
        done.append("other")
        thread.join()
        assert done.index("other") <= 6, done


# ---- event loops -----------------------------------------------------------------------------------------------------


def test_tasks_side_by_side(model: Gemma) -> None:
    prompts = [[2 + n] * (1 + 3 * n) for n in range(30)]
    alone = [model.generate(prompt, max_tokens=10, **HOT) for prompt in prompts]

    async def read(prompt: list[int]) -> tuple[str, list[int], str]:
        stream = model.astream(prompt, max_tokens=10, **HOT)
        text = "".join([piece async for piece in stream])
        assert text == stream.completion.text
        return as_tuple(stream.completion)

    async def ask(prompt: list[int]) -> tuple[str, list[int], str]:
        return as_tuple(await model.agenerate(prompt, max_tokens=10, **HOT))

    async def all_of_them() -> list[tuple[str, list[int], str]]:
        return await asyncio.gather(*(f(prompt) for prompt in prompts for f in (read, ask)))

    assert asyncio.run(all_of_them()) == [as_tuple(a) for a in alone for _ in range(2)]


def test_the_event_loop_goes_on_meanwhile(model: Gemma) -> None:
    async def both() -> int:
        ticks, task = 0, asyncio.create_task(model.agenerate([2] * 900, max_tokens=30, **HOT))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(both()) > 10


def test_progress_comes_in_the_event_loop(model: Gemma) -> None:
    seen: list[tuple[int, int, bool]] = []
    main = threading.get_ident()

    def note(done: int, total: int) -> None:
        seen.append((done, total, threading.get_ident() == main))

    asyncio.run(model.agenerate([2] * 40, max_tokens=1, on_progress=note))
    assert [s[0] for s in seen] == sorted({s[0] for s in seen}) and seen[-1] == (40, 40, True)

    def fail(_done: int, _total: int) -> None:
        raise RuntimeError("in the callback")

    with pytest.raises(RuntimeError, match="in the callback"):
        asyncio.run(model.agenerate([2] * 900, max_tokens=500, on_progress=fail))
    soon(model)


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.05])
def test_a_task_that_is_cancelled_ends_its_answer(model: Gemma, delay: float) -> None:
    endless(model)

    async def cancel() -> None:
        task = asyncio.create_task(model.agenerate([2] * 300, max_tokens=700, **HOT))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    soon(model)


def test_a_timeout_ends_an_answer(model: Gemma) -> None:
    endless(model)

    async def wait() -> None:
        await asyncio.wait_for(model.agenerate([2], max_tokens=1000, **HOT), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    soon(model)


def test_closing_a_stream_that_a_task_waits_for(model: Gemma) -> None:
    endless(model)

    async def close() -> str:
        stream = model.astream([2] * 900, max_tokens=100, **HOT)
        task = asyncio.create_task(_read(stream))
        await asyncio.sleep(0.01)
        await stream.aclose()
        await stream.aclose()
        await task
        return stream.completion.finish_reason

    assert asyncio.run(close()) == "cancelled"
    soon(model)


async def _read(stream: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in stream]


def test_an_event_loop_that_is_closed_with_a_stream_open(model: Gemma, expected: Completion) -> None:
    """Read further or not: the engine hears of it, and nothing is left when the stream is dropped."""
    endless(model)
    left = []

    async def begin(prompt: list[int]) -> None:
        stream = model.astream(prompt, max_tokens=900, **HOT)
        if len(prompt) == 1:
            await anext(stream)
        left.append(stream)

    for prompt in ([2], [2] * 900):
        asyncio.run(begin(prompt))
    assert model.generate(PROMPT, max_tokens=24, **GREEDY).token_ids[:5] == expected.token_ids[:5]
    left.clear()
    gc.collect()
    soon(model)


def test_a_dropped_asynchronous_stream_ends_its_answer(path: Path) -> None:
    """Unread, it waits for its reader; then there is none."""
    with Gemma(path, threads=1, prefix_cache=0) as model:
        endless(model)

        async def drop() -> None:
            streams = [model.astream([2, n], max_tokens=1000, **HOT) for n in range(3, 6)]
            await anext(streams[0])
            await asyncio.to_thread(soon, model, 3)
            del streams
            gc.collect()
            await asyncio.to_thread(soon, model)

        asyncio.run(drop())
        assert pages(model) == 0


def test_a_dropped_model_with_an_asynchronous_stream(path: Path) -> None:
    async def drop() -> None:
        model = Gemma(path, threads=1)
        endless(model)
        stream = model.astream([2], max_tokens=1000, **HOT)
        await anext(stream)
        del model, stream

    asyncio.run(drop())
    gc.collect()
    assert workers() == []


def test_closing_the_model_in_its_event_loop(path: Path) -> None:
    async def close() -> list[object]:
        model = Gemma(path, threads=2)
        endless(model)
        streams = [model.astream([2, n], max_tokens=1000, **HOT) for n in range(3, 6)]
        tasks = [asyncio.create_task(_read(stream)) for stream in streams]
        waiting = asyncio.create_task(model.agenerate([2] * 1000, max_tokens=20))
        await anext(model.astream([2], max_tokens=1))
        model.close()
        return await asyncio.gather(*tasks, waiting, return_exceptions=True)

    *texts, waited = asyncio.run(asyncio.wait_for(close(), 60))
    assert all(isinstance(t, list) or str(t) == "the model is closed" for t in texts)
    assert isinstance(waited, Completion) or str(waited) == "the model is closed"
    assert workers() == []


def test_without_an_event_loop(model: Gemma) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        model.astream(PROMPT)
    soon(model)
