"""What the tests of `Gemma` share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from edge_gemma import Gemma
from edge_gemma.gemma import Completion

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "aa bb cc"
GREEDY: dict[str, Any] = {"temperature": 0.0}


def answer(model: Gemma) -> tuple[str, list[int], str]:
    made = model.generate(PROMPT, max_tokens=24, **GREEDY)
    return made.text, made.token_ids, made.finish_reason


def as_tuple(made: Completion) -> tuple[str, list[int], str]:
    return made.text, made.token_ids, made.finish_reason


_OTHERS: set[threading.Thread] = set()
"""Workers that tests of other files keep."""


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("edge-gemma") and t not in _OTHERS]


def ignore_present_workers() -> None:
    _OTHERS.update(workers())


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
