"""Fails if README.md and .ci/run no longer name the same two commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme_commands() -> list[str]:
    """The install-and-use lines in the README's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("pip install")]


def ci_commands() -> list[str]:
    """The lines that .ci/run takes from the README."""
    return re.findall(r"^readme '(.+)'$", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)


def main() -> int:
    """0 if both have the same two commands."""
    readme, ci = readme_commands(), ci_commands()
    if len(readme) == 2 and readme == ci:
        return 0
    print(f"README.md and .ci/run differ:\n  README.md: {readme}\n  .ci/run:   {ci}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
