"""PyInstaller's hook: these names are what it reads. Numba and llvmlite have hooks that come with PyInstaller."""  # noqa: N999

from pathlib import Path

import edge_gemma
from edge_gemma._pyinstaller import OPTIONAL, modules

hiddenimports = modules()
excludedimports = OPTIONAL
datas = [(str(Path(edge_gemma.__path__[0], "py.typed")), "edge_gemma")]
