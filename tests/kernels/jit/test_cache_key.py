"""The key of the kernel cache: it changes with all that machine code depends on, however the package is installed."""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import edge_gemma
import edge_gemma.kernels
from edge_gemma.kernels.jit import cache_key as digests
from edge_gemma.kernels.jit import installed

ROOT = Path(__file__).parents[3]

FROZEN = """
import importlib.util, marshal, pickle, sys
MODULES = pickle.loads(open(sys.path[0] + "/frozen", "rb").read())

class Frozen:
    "Modules as a frozen application has them: code that a finder of its own knows, at paths that do not exist."

    def __init__(self, place):
        if not place.startswith("/frozen"):
            raise ImportError
        self.prefix = place[8:].replace("/", ".") + "." if place != "/frozen" else ""

    def iter_modules(self, prefix=""):
        for name, (_, package) in MODULES.items():
            if name.startswith(self.prefix) and "." not in name[len(self.prefix):]:
                yield prefix + name[len(self.prefix):], package

    def find_spec(self, name, _=None):
        if name not in MODULES:
            return None
        path = "/frozen/" + name.replace(".", "/")
        package = MODULES[name][1]
        spec = importlib.util.spec_from_loader(name, self, origin=path + ".pyc", is_package=package)
        if package:
            spec.submodule_search_locations[:] = [path]
        spec.has_location = True
        return spec

    create_module = staticmethod(lambda spec: None)
    get_data = staticmethod(lambda path: open(path, "rb").read())
    GET_CODE

    def exec_module(self, module):
        exec(marshal.loads(MODULES[module.__name__][0]), module.__dict__)

sys.path_hooks.insert(0, Frozen)
sys.path.insert(1, "/frozen")
"""
GET_CODE = "get_code = staticmethod(lambda name: marshal.loads(MODULES[name][0]))"


# ---- forms of installation ---------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the package as pip installs it, without what loads no kernel."""
    package = tmp_path / "site/edge_gemma"
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__", "formats", "errors", "cores", "user_cache"):
        shutil.copy(ROOT / f"edge_gemma/{name}.py", package)
    return package.parent


def source(site: Path) -> Path:
    return site


def bytecode(site: Path) -> Path:
    """Beside the sources' places, and no sources."""
    assert compileall.compile_dir(site, quiet=1, legacy=True, force=True)
    for path in site.rglob("*.py"):
        path.unlink()
    return site


def archive(site: Path) -> Path:
    path = site.parent / "application.pyz"
    with zipfile.ZipFile(path, "w") as file:
        for part in site.rglob("*.py*"):
            file.write(part, part.relative_to(site))
    return path


def archive_of_bytecode(site: Path) -> Path:
    return archive(bytecode(site))


def frozen(site: Path, get_code: str = GET_CODE) -> Path:
    """A folder with a file of marshalled code, and the importer of it."""
    import marshal
    import pickle

    modules = {}
    for path in site.rglob("*.py"):
        parts = path.relative_to(site).with_suffix("").parts
        name, package = ".".join(parts).removesuffix(".__init__"), parts[-1] == "__init__"
        modules[name] = marshal.dumps(compile(path.read_text("utf-8"), str(path), "exec")), package
    folder = site.parent / "application"
    folder.mkdir(exist_ok=True)
    (folder / "frozen").write_bytes(pickle.dumps(modules))
    (folder / "sitecustomize.py").write_text("")
    (folder / "importer.py").write_text(FROZEN.replace("GET_CODE", get_code))
    return folder


def frozen_without_code(site: Path) -> Path:
    return frozen(site, "")


FORMS = [source, bytecode, archive, archive_of_bytecode, frozen]


def key(place: Path, setup: str = "") -> str | None:
    """The key in a process that finds the package at `place`. It has not imported Numba."""
    code = (
        f"import os, sys\nsys.path.insert(0, {str(place)!r})\n{setup}\n"
        "if os.path.exists(sys.path[0] + '/importer.py'): import importer\n"
        "from edge_gemma.kernels import isa\n"
        "from edge_gemma.kernels.jit import cache_key\n"
        "assert 'numba' not in sys.modules and __import__('edge_gemma').__file__.startswith(('/frozen', sys.path[0]))\n"
        "import json; print(json.dumps(cache_key.cache_key()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place.parent, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: str | None = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_two_versions_have_two_keys_in_every_form(form: Callable[[Path], Path], site: Path, tmp_path: Path) -> None:
    places = {}
    for change in ("none", "a kernel", "the version", "a kernel inside"):
        copy = Path(shutil.copytree(site, tmp_path / change / "site"))
        if change == "a kernel":
            path = copy / "edge_gemma/kernels/simd/transcendental.py"
            path.write_text(path.read_text("utf-8").replace("LOG2_E = 1.44", "LOG2_E = 1.45"), "utf-8")
        if change == "the version":
            path = copy / "edge_gemma/__init__.py"
            path.write_text(path.read_text("utf-8").replace(edge_gemma.__version__, "99.0"), "utf-8")
        if change == "a kernel inside":
            (copy / "edge_gemma/kernels/inside").mkdir()
            (copy / "edge_gemma/kernels/inside/__init__.py").touch()
            (copy / "edge_gemma/kernels/inside/matvec.py").write_text("X = 1\n")
        places[change] = form(copy)
    keys = {change: key(place) for change, place in places.items()}
    assert None not in keys.values() and len(set(keys.values())) == 4, keys
    assert key(places["none"], "import email.message, sqlite3") == keys["none"]  # whatever else shares its strings


@pytest.mark.parametrize("form", [source, archive, frozen])
def test_one_version_has_one_key_wherever_it_is(form: Callable[[Path], Path], site: Path, tmp_path: Path) -> None:
    copies = [form(Path(shutil.copytree(site, tmp_path / name / "site"))) for name in ("one", "another")]
    assert key(copies[0]) == key(copies[1]) is not None


def test_a_checkout_and_an_installation_have_one_key(site: Path) -> None:
    assert key(site) == key(ROOT) is not None


def test_modules_that_nobody_can_read_have_none(site: Path) -> None:
    assert key(frozen_without_code(site)) is None


def test_without_a_key_nothing_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from edge_gemma.kernels.jit import cache_folder

    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache_folder, "cache_key", lambda: None)
    assert cache_folder.cache_folder() is None and not list(tmp_path.iterdir())
    (warning,) = caplog.messages
    assert warning.startswith("kernels are not cached") and "version" in warning


# ---- what it changes with ----------------------------------------------------------------------------------------


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' sources, in place of theirs."""
    copy = Path(shutil.copytree(ROOT / "kernels", tmp_path / "kernels"))
    monkeypatch.setattr(edge_gemma.kernels, "__path__", [str(copy)])
    return copy


def test_a_changed_source_is_noticed(kernels: Path) -> None:
    seen = {digests._installed()}
    assert seen == {digests._installed()} == {digests.INSTALLED}
    for name in (
        "layout.py",
        "simd/transcendental.py",
        "inside/simd.py",
        "inside/again/simd.py",
        "added.py",
        "module.so",
    ):
        path = kernels / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
        seen.add(digests._installed())
    (kernels / "layout.py").rename(kernels / "tuoyal.py")
    seen.add(digests._installed())
    assert len(seen) == 8 and None not in seen


def test_what_is_no_source_is_not(kernels: Path) -> None:
    (kernels / "reference.py").write_text("another")
    (kernels / "__pycache__").mkdir(exist_ok=True)
    (kernels / "__pycache__/layout.cpython-311.pyc").write_bytes(b"another")
    (kernels / "layout.pyc").write_bytes(b"beside its source, which is what runs")
    (kernels / "notes.txt").write_text("another")
    assert digests._installed() == digests.INSTALLED


def test_another_table_of_formats_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "formats.py").write_text("another")
    monkeypatch.setattr(edge_gemma, "__path__", [str(tmp_path), *edge_gemma.__path__])
    assert digests._installed() != digests.INSTALLED


def test_files_that_cannot_be_read_tell_nothing(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is removing them."""

    def gone(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert digests._installed() is None


@pytest.mark.parametrize("name", ["llvmlite.__version__", "numpy.__version__", f"{digests.__name__}.__version__"])
def test_another_version_gives_another_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests.cache_key.__wrapped__()
    monkeypatch.setattr(name, "0.0")
    assert digests.cache_key.__wrapped__() != before


@pytest.mark.parametrize("kept", ["file", "metadata"])
def test_another_numba_gives_another_key(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its version is in the module where it is today, or only in the package's metadata."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    for version in ("1.0", "1.1", None):
        if version is None:
            shutil.rmtree(tmp_path / "numba")
            (tmp_path / "numba").mkdir()
            (tmp_path / "numba/__init__.py").touch()
            monkeypatch.setattr(metadata, "version", unknown)
        elif kept == "file":
            (tmp_path / "numba/_version.py").write_text(version)
        else:
            monkeypatch.setattr(metadata, "version", lambda name, v=version: {"numba": v}[name])
        importlib.invalidate_caches()
        seen.append(digests._installed())
    assert seen[0] != seen[1] and None not in seen[:2] and seen[2] is None


def unknown(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_another_cpu_gives_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests.cache_key.__wrapped__()
    monkeypatch.setattr(digests, "target", lambda: ("another", ""))
    assert digests.cache_key.__wrapped__() != before


def test_another_instruction_set_of_the_same_cpu_gives_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the user names to Numba the CPU that there is: only the plainest kernels are compiled, for that."""
    from edge_gemma.kernels.isa import LADDER

    monkeypatch.setattr(digests, "current", lambda: LADDER[0])
    before = digests.cache_key.__wrapped__()
    monkeypatch.setattr(digests, "current", lambda: LADDER[-1])
    assert digests.cache_key.__wrapped__() != before


# ---- code --------------------------------------------------------------------------------------------------------


def written(code: str, name: str = "a.py") -> bytes | None:
    class Loader:
        get_code = staticmethod(lambda _name: compile(code, name, "exec"))

    return installed._content(ModuleSpec("a", Loader(), origin="/nowhere/a.pyc"))


def test_code_is_what_it_does() -> None:
    """Not where it was compiled, nor which of its strings others have."""
    plain = "def f(x, y=1):\n    return x in {'one', 'two', 'three'}, (1.0, 'a'), y"
    assert written(plain) == written("# moved\n\n" + plain, "another.py") is not None
    others = ["x)", "x, y=2)", "*x, y=1)", "x, *, y=1)", "x, z=1)"]
    changes = [plain.replace("x, y=1)", other) for other in others]
    changes += [plain.replace("1.0", other) for other in ("1", "True", "-1.0", "'1.0'", "b'1.0'", "(1.0,)")]
    changes += [plain.replace("'two'", "'ten'"), plain.replace("in", "not in"), plain.replace("return", "yield")]
    seen = {written(change.replace(", y", "") if change.startswith("def f(x):") else change) for change in changes}
    assert len(seen | {written(plain)}) == len(changes) + 1


def test_code_is_written_alike_under_every_seed_of_hashes() -> None:
    text = "x in {'a', 'b', 'c', 'd', 'e', 'f'}"
    program = f"from tests.kernels.jit.test_cache_key import written; print(written({text!r}))"
    said = set()
    for seed in ("1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
