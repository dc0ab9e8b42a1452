"""Finds tokens written out in a text. Knows texts and ids, nothing of what a token means."""

from __future__ import annotations

import re
from collections.abc import Iterator


class TokenFinder:
    """Finds tokens from left to right; of several at one place the longest."""

    PREFIX = 3

    def __init__(self, ids: dict[str, int]) -> None:
        """`ids`: of each text, none empty."""
        self._ids = ids
        lengths: dict[str, set[int]] = {}
        for name in ids:
            lengths.setdefault(name[: self.PREFIX], set()).add(len(name))
        self._lengths = {prefix: sorted(found, reverse=True) for prefix, found in lengths.items()}
        longest_first = sorted(lengths, key=len, reverse=True)
        self._prefix = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[str | int]:
        """The text in order, as stretches without a token, some of them empty, and the ids between them."""
        done = at = 0
        while self._ids and (found := self._prefix.search(text, at)):
            start = found.start()
            name = self._name_at(text, start, found.group())
            at = start + max(len(name), 1)
            if name:
                yield text[done:start]
                yield self._ids[name]
                done = at
        yield text[done:]

    def _name_at(self, text: str, start: int, prefix: str) -> str:
        names = (text[start : start + length] for length in self._lengths[prefix])
        return next((name for name in names if name in self._ids), "")
