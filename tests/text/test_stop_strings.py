"""Stop strings: nothing of a stop string is ever shown, and the cut does not depend on the pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.text.stop_strings import StopStrings

SHORT = st.text(alphabet="abc", min_size=1, max_size=5)


def stream(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    watch = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, hit = watch.push(piece)
        shown.append(text)
        if hit:
            return shown, watch.matched
    shown.append(watch.flush())
    return shown, None


def whole(stops: list[str], text: str) -> tuple[str, str | None]:
    """The same by str.find on the whole text."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, start = min(ends)
    return text[:start], text[start:end]


@given(st.lists(SHORT, max_size=4), st.lists(st.text(alphabet="abc", max_size=4), max_size=20))
def test_equal_to_find_on_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    shown, matched = stream(stops, pieces)
    assert ("".join(shown), matched) == whole(stops, "".join(pieces))


@given(st.lists(SHORT, min_size=1, max_size=3), st.text(alphabet="abc", max_size=30))
def test_nothing_is_held_longer_than_needed(stops: list[str], text: str) -> None:
    watch = StopStrings(stops)
    seen, shown = "", ""
    for char in text:
        new, hit = watch.push(char)
        seen, shown = seen + char, shown + new
        if hit:
            break
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_single_string_is_one_stop() -> None:
    watch = StopStrings("ab")
    assert watch.push("xa") == ("x", False)
    assert watch.push("b") == ("", True)
    assert watch.matched == "ab"


def test_nothing_comes_after_a_hit() -> None:
    watch = StopStrings(["\n"])
    assert watch.push("a\nb") == ("a", True)
    assert watch.push("c") == ("", True)
    assert watch.flush() == ""


def test_without_stops_all_passes_at_once() -> None:
    assert StopStrings([]).push("anything") == ("anything", False)


def test_a_beginning_that_leads_nowhere_is_shown() -> None:
    watch = StopStrings(["aab"])
    assert watch.push("a") == ("", False)
    assert watch.push("a") == ("", False)
    assert watch.push("a") == ("a", False)
    assert watch.push("b") == ("", True)


@pytest.mark.parametrize(
    ("stops", "error"), [([""], ValueError), ([3], TypeError), (["x"] * 65, ValueError), (["x" * 1025], ValueError)]
)
def test_bad_stops(stops: list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match="stop"):
        StopStrings(stops)
