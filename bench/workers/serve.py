"""The serving half of a worker process: lines of JSON in, lines of JSON out. Knows no engine.

Standard library only: interpreters of other projects import it too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer `{"do": name, argument: value, ...}` with `{"value": ...}` or `{"error": text}` until stdin ends.

    Whatever else prints to stdout, C libraries included, is sent to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            answer = {"value": handlers[name](**request)}
        except Exception as error:  # the asking process decides what becomes of it
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
