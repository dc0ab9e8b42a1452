"""What PyInstaller is told of the package. `tools/check_frozen.py` builds and starts a real frozen program."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from edge_gemma._pyinstaller import OPTIONAL, hook_dirs

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = {"numpy", "numba", "llvmlite", "gguf", "sentencepiece", "tqdm", "platformdirs", "psutil"}


def hook() -> dict[str, object]:
    (folder,) = hook_dirs()
    return runpy.run_path(str(Path(folder) / "hook-edge_gemma.py"))


def sources() -> dict[str, Path]:
    """Every module of the package, by the name it is imported by."""
    files = {}
    for folder, prefix in (("edge_gemma", ""), ("kernels", "edge_gemma."), ("quantize", "edge_gemma.")):
        for path in (ROOT / folder).rglob("*.py"):
            name = prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = path
    return {name: path for name, path in files.items() if "_pyinstaller" not in name}


def test_the_hook_names_every_module_and_nothing_else() -> None:
    assert set(hook()["hiddenimports"]) == set(sources())
    assert {"edge_gemma.kernels.ops.attention", "edge_gemma.quantize.convert", "edge_gemma.commands.run"} <= set(
        sources()
    )


def test_an_installed_package_names_the_same(tmp_path: Path) -> None:
    """There the folders of kernels and quantizer are inside the package's."""
    for source, place in (("edge_gemma", "."), ("kernels", "kernels"), ("quantize", "quantize")):
        shutil.copytree(
            ROOT / source,
            tmp_path / "edge_gemma" / place,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    code = "import json\nfrom edge_gemma._pyinstaller import *\nprint(json.dumps([hook_dirs(), modules()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    (folder,), names = json.loads(done.stdout)
    assert Path(folder) == tmp_path / "edge_gemma/_pyinstaller" and set(names) == set(sources())


def test_the_hook_brings_the_files_that_are_no_modules() -> None:
    others = {p for p in (ROOT / "edge_gemma").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert {(str(path), "edge_gemma") for path in others} == set(hook()["datas"])


def test_what_is_not_needed_to_run_is_left_out() -> None:
    """All that the package imports comes with it, or is named as optional."""
    imported = set()
    for path in sources().values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names - {"edge_gemma"} - RUNTIME == set(OPTIONAL)
    assert hook()["excludedimports"] == OPTIONAL
