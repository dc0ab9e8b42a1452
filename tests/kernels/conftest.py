"""One kernel cache for all tests of a user, so that each kernel is compiled once; its name has the sources' digest."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

if "EDGE_GEMMA_CACHE_DIR" not in os.environ:
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"edge-gemma-tests-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["EDGE_GEMMA_CACHE_DIR"] = str(folder)
