"""Freeze a program with PyInstaller, as an application is, and start it twice with the real Gemma 3 270M.

The first start compiles kernels into the user's cache, telling its progress and starting no process; the second
compiles nothing. `python tools/check_frozen.py` takes about 4 minutes on two idle cores, 1.5 GB of temporary files and
a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """\
import sys
import psutil
from edge_gemma import Gemma

def progress(done, total, name):
    children = psutil.Process().children(recursive=True)
    print("compiling", done, total, name, *(f"child {child.pid}" for child in children), flush=True)

with Gemma(sys.argv[1], progress=progress) as model:
    print(model.generate("The capital of France is", max_tokens=8, temperature=0.0).text)
"""
ASSEMBLE = "from edge_gemma.commands.demo_model import *; assemble(source := files().source); print(source)"


def main() -> str | None:
    """Returns what is wrong."""
    with tempfile.TemporaryDirectory(prefix="edge-gemma-frozen-") as name:
        work = Path(name)
        os.environ["EDGE_GEMMA_CACHE_DIR"] = str(work / "cache")
        python = environment(work)
        model = said(python, "-c", ASSEMBLE, folder=work).strip()
        program = freeze(python, work)
        return fault(start(program, model, work), start(program, model, work), work / "cache")


def environment(work: Path) -> Path:
    """An interpreter which has this checkout installed, from a copy so that nothing is left here, and PyInstaller."""
    shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    said(python, "-m", "pip", "install", "--quiet", f"{work / 'source'}[demo]", "pyinstaller>=6", folder=work)
    return python


def freeze(python: Path, work: Path) -> Path:
    """A bundle of one folder with the program; nothing is said to PyInstaller but the program's name."""
    (work / "program.py").write_text(PROGRAM, "utf-8")
    said(python, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "program.py", folder=work)
    return work / "dist/program" / ("program.exe" if os.name == "nt" else "program")


def start(program: Path, model: str, work: Path) -> list[str]:
    """The lines that the program prints."""
    return said(program, model, folder=work).splitlines()


def said(*command: Path | str, folder: Path) -> str:
    """What a command prints. It finds no module of the checkout, and its errors go to the terminal."""
    began = time.monotonic()
    unset = ("PYTHONPATH", "PYTHONHOME", "EDGE_GEMMA_COMPILE_WORKERS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    print(f"{time.monotonic() - began:6.1f} s  {' '.join(map(str, command[:4]))}", flush=True)
    return done.stdout


def fault(first: list[str], second: list[str], cache: Path) -> str | None:
    """What is not as it should be with two starts."""
    compiling = [line for line in first if line.startswith("compiling")]
    kernels = len(list(cache.glob("kernels/*/*.kernel")))
    print(f"first start: {len(compiling)} calls of progress, {kernels} kernels kept; text: {first[-1]!r}")
    if len(compiling) < 2 or kernels != len(compiling) - 1:
        return "the first start did not compile, tell and keep its kernels"
    if any(" child " in line for line in compiling):
        return "the first start started processes, which are copies of the application"
    if second != first[len(compiling) :]:
        return f"the second start compiled, or said something else: {second}"
    return None if "France" in first[-1] else "the text is not the model's"


if __name__ == "__main__":
    sys.exit(main())
