"""Requests to an engine whose model is a FakeRunner, and what each gives alone. Knows no test."""

from __future__ import annotations

import random
from typing import Any

from edge_gemma.engine.answer import Delta, Writer
from edge_gemma.engine.channel import Channel
from edge_gemma.engine.loop import Engine
from edge_gemma.engine.sampler import Sampler, SamplingParams
from edge_gemma.engine.sequence import Generation, PromptRead
from tests.engine.fake_runner import VOCABULARY, logits_after

END = 1
"""The token that ends answers."""


class Letters:
    """A tokenizer whose tokens are letters."""

    eog_ids = frozenset({END})

    def is_control(self, token: int) -> bool:
        return token == END

    def token_bytes(self, token: int) -> bytes:
        return chr(ord("A") + token).encode()

    def strip_prefix(self, raw: bytes) -> bytes:
        return raw

    def stands_apart(self, token: int) -> bool:
        return self.is_control(token)


def generation(
    engine: Engine,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    params: SamplingParams | None = None,
    backlog: int = 1000,
    **options: Any,
) -> Generation:
    channel: Channel[PromptRead | Delta] = Channel(backlog, engine.wake)
    sampler = Sampler(params or SamplingParams(temperature=0.0))
    tokenizer: Any = Letters()
    return Generation(prompt, Writer(tokenizer, prompt, max_tokens), sampler, channel, **options)


def submitted(engine: Engine, *arguments: Any, **options: Any) -> Generation:
    made = generation(engine, *arguments, **options)
    engine.submit(made)
    return made


def deltas(made: Generation) -> list[Delta]:
    return [item for item in made.channel if isinstance(item, Delta)]


def tokens_of(made: Generation) -> list[int]:
    return [token for delta in deltas(made) for token in delta.token_ids]


def alone(prompt: list[int], max_tokens: int = 8, params: SamplingParams | None = None) -> list[int]:
    """What a prompt is continued with, by the definition."""
    sampler, text = Sampler(params or SamplingParams(temperature=0.0)), list(prompt)
    for _ in range(max_tokens):
        text.append(sampler.sample(logits_after(text), None, text, len(text)))
        if text[-1] == END:
            break
    return text[len(prompt) :]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(2, VOCABULARY) for _ in range(choose.randrange(1, 40))] for _ in range(count)]
