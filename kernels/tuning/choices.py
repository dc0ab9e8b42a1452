"""The strategies that were fastest on this machine, kept beside the compiled kernels. Measures nothing: see `tuner`.

The cache's folder stands for kernels, compilers, CPU and features; the file's name adds the sizes of the caches.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from .. import caches
from ..jit.cache_file import read_object, write_object
from ..jit.library import shared
from .strategies import DEFAULTS, STRATEGIES, Choices

log = logging.getLogger(__name__)

SWITCH = "EDGE_GEMMA_TUNE"


@dataclass(frozen=True)
class Tuning:
    """What is known: the strategy of each class that was measured, and how often measuring was disturbed."""

    measured: dict[str, str] = field(default_factory=dict)
    disturbed: int = 0


def is_enabled() -> bool:
    """Whether strategies are tuned. Raises ValueError if EDGE_GEMMA_TUNE is neither "on", "off" nor empty."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "on", "off"):
        raise ValueError(f"{SWITCH}={value!r}: 'off' leaves the strategies at their defaults, 'on' tunes them once")
    return value != "off"


def tuned_choices() -> Choices:
    """How to run decoding products on this machine; the defaults where nothing was measured, or tuning is off."""
    return Choices(load().measured) if is_enabled() else DEFAULTS


def load() -> Tuning:
    """What is stored for this machine."""
    content = read_object(path) if (path := _path()) else None
    try:
        stored = json.loads(content) if content else {}
        measured = {str(k): v for k, v in stored.get("measured", {}).items() if v in STRATEGIES}
        return Tuning(measured, int(stored.get("disturbed", 0)))
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("ignoring %s: %s", path, error)
        return Tuning()


def save(tuning: Tuning) -> bool:
    """Keep it for later starts. False if there is no cache folder, or it cannot be written."""
    path = _path()
    if path is None:
        return False
    try:
        write_object(path, json.dumps({"measured": tuning.measured, "disturbed": tuning.disturbed}).encode())
    except OSError as error:
        log.warning("strategies will be measured again next time, %s cannot be written: %s", path, error)
        return False
    return True


def _path() -> Path | None:
    folder, sizes = shared().folder, caches.sizes()
    return folder / f"tuning-{sizes.l1}-{sizes.l2}-{sizes.last}.json" if folder else None
