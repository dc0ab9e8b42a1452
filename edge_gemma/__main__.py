"""`python -m edge_gemma`: the same as `edge-gemma`."""

from __future__ import annotations

import sys

from edge_gemma.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
