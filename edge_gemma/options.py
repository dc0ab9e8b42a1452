"""What an answer may be asked with, as types of keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; see `SamplingParams`, whose defaults hold for what is not given."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    seed: int | None


class AnswerOptions(SamplingOptions, total=False):
    """max_tokens: most tokens, 256 by default. stop: strings before which an answer ends. priority: larger goes first
    where answers wait. deadline: seconds from now, after which it ends with what there is.
    """

    max_tokens: int
    stop: str | Sequence[str]
    priority: int
    deadline: float | None
