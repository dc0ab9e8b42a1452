"""Stop strings in a stream of text. Knows no tokens and no model."""

from __future__ import annotations

from collections.abc import Sequence

MAX_STOPS = 64
MAX_STOP_CHARS = 1024


class StopStrings:
    """Passes text on until a stop string is complete, and never a part of one.

    The stop string that is complete first ends the stream, and of several complete at once the longest. So the result
    does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        """`stops`: none or more strings, none of them empty. Raises ValueError or TypeError for others."""
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        self._held = ""
        self._matched: str | None = None
        _check(self._stops)

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None as long as there was none."""
        return self._matched

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that is now safe to show, and whether a stop string was hit; after that nothing comes out."""
        if self._matched is not None:
            return "", True
        text = self._held + piece
        end, start = self._first_match(text)
        if start >= 0:
            self._matched = text[start:end]
            self._held = ""
            return text[:start], True
        safe = len(text) - self._possible_beginning(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """What was held back; call once, when the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int]:
        """(end, start) of the match that ends first, the longest of these; start is -1 where there is none."""
        found = ((start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0)
        return min(found, default=(-1, -1))

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string could begin with."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        ends = (text[len(text) - n :] for n in range(longest, 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self._stops)), 0)


def stop_strings(stop: object) -> tuple[str, ...]:
    """One or several, checked as `StopStrings` does. Raises ValueError, TypeError."""
    if not isinstance(stop, str | Sequence):
        raise TypeError(f"stop: expected a string or several, got {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    _check(stops)
    return stops


def _check(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise ValueError(f"stop takes at most {MAX_STOPS} strings, got {len(stops)}")
    for stop in stops:
        if not isinstance(stop, str):
            raise TypeError(f"stop must be strings, got {stop!r}")
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARS} characters, got {len(stop)}")
