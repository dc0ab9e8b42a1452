"""`python -m edge_gemma.quantize SRC OUT --type T`: the same as `edge-gemma quantize`."""

from __future__ import annotations

import sys

from edge_gemma.commands.quantize import main

if __name__ == "__main__":
    sys.exit(main())
