"""How work that takes a while tells how far it is. Knows no work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, of how many, what is being done)"""
TokenProgress: TypeAlias = Callable[[int, int], None]
"""progress(tokens done, of how many)"""
