"""Write edge_gemma/text/unicode_ranges.py from Python's own tables: `python3.13 tools/make_unicode_ranges.py`.

llama.cpp and the models' trainers agree with Unicode 15.1, which is Python 3.13's; other versions know other letters,
and a text's ids must not depend on the Python that runs. With unicodedata2 15.1 installed any Python does.
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

UNICODE = "15.1.0"
TARGET = Path(__file__).resolve().parents[1] / "edge_gemma/text/unicode_ranges.py"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
HEAD = '''"""Which characters are letters, numbers and punctuation: the categories L, N and P of Unicode {version}.

Made by tools/make_unicode_ranges.py. Each line has the distances, in base 36, from one border to the next: the first
border is where the first range begins, the second where it has ended, and so on.
"""

'''


def borders(belongs: Callable[[str], bool]) -> list[int]:
    """The code points at which membership changes, outside before the first."""
    inside = [False, *(belongs(chr(code)) for code in range(sys.maxunicode + 1)), False]
    return [code for code, (before, now) in enumerate(pairwise(inside)) if before != now]


def base_36(number: int) -> str:
    """A number in base 36."""
    return (base_36(number // 36) if number >= 36 else "") + DIGITS[number % 36]


def main() -> None:
    """Write the file."""
    try:
        tables = importlib.import_module("unicodedata2")
    except ImportError:
        tables = importlib.import_module("unicodedata")
    assert tables.unidata_version == UNICODE, f"tables of {tables.unidata_version}, wanted {UNICODE}"
    out = HEAD.format(version=UNICODE)
    for name, category in (("LETTERS", "L"), ("NUMBERS", "N"), ("PUNCTUATION", "P")):
        found = borders(lambda char, category=category: tables.category(char)[0] == category)  # type: ignore[misc]
        steps = " ".join(base_36(b - a) for a, b in pairwise([0, *found]))
        out += f'{name} = """\n{textwrap.fill(steps, 120)}\n"""\n'
    TARGET.write_text(out, "utf-8")
    print(f"{TARGET}: {len(out)} bytes")


if __name__ == "__main__":
    main()
