"""The keywords that answers are asked with, for type checkers. Knows no values: who takes them checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen: see `SamplingParams`, whose defaults hold."""

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
    """What an answer may be asked with.

    max_tokens: most tokens, 256 by default. stop: strings before which it ends. priority: larger goes first where
    answers wait. deadline: seconds from now, after which it ends with what there is.
    """

    max_tokens: int
    stop: str | Sequence[str]
    priority: int
    deadline: float | None
