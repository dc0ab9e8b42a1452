"""Who may know whom: the arrows between folders and modules, read from the source and tried in a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILED_CODE = {"numba", "llvmlite"}
MAPPED = ("kernels", "quantize")
REFEREES = {"torch", "transformers", "llama_cpp"}
WITHOUT_NUMBA = [
    "operations",
    "layout",
    "caches",
    "isa",
    "jit.library",
    "jit.cache_file",
    "jit.cache_folder",
    "jit.cache_key",
    "jit.workers",
    "tuning.strategies",
    "jit.executable_memory",
    "threads.pool",
    "tuning.tuner",
    "tuning.choices",
    "reference.operations",
    "reference.formats",
    "reference.experts",
]
KERNELS_MAY_KNOW = (
    "edge_gemma.__version__",
    "edge_gemma.kernels",
    "edge_gemma.formats",
    "edge_gemma.errors",
    "edge_gemma.cores",
    "edge_gemma.user_cache",
    "edge_gemma.__version__",
)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules imported anywhere in a file, and whether that is at its top level, where it costs everyone."""
    tree = parse(path)
    top = {id(node) for node in _top_level(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(path, node)
            yield from ((f"{source}.{alias.name}", id(node) in top) for alias in node.names)


def module_name(path: Path) -> str:
    """`kernels/` and `quantize/` install inside `edge_gemma`."""
    parts = [*path.relative_to(ROOT).with_suffix("").parts]
    return ".".join([*(["edge_gemma"] if parts[0] in MAPPED else []), *parts])


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module_name(path).split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the file is imported: not in a function, and not for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _top_level(node)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", sources("kernels"), ids=name)
def test_kernels_know_numbers_and_formats_only(path: Path) -> None:
    for module, _ in imports(path):
        if within(module, "edge_gemma"):
            assert any(within(module, known) for known in KERNELS_MAY_KNOW), module


@pytest.mark.parametrize("folder", MAPPED)
def test_mapped_folders_import_from_themselves_by_relative_names(folder: str) -> None:
    """So that type checkers and editors, which know these folders by their place in the checkout, see the arrows."""
    for path in sources(folder):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not within(node.module or "", f"edge_gemma.{folder}"), f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", sources("edge_gemma"), ids=name)
def test_the_runtime_knows_neither_quantizer_nor_compiler(path: Path) -> None:
    """The quantizer only where the user asks for it: in its command, and inside functions of other commands."""
    for module, top in imports(path):
        assert module.split(".")[0] not in COMPILED_CODE, module
        if within(module, "edge_gemma.quantize"):
            assert path.parent.name == "commands" and (not top or path.name == "quantize.py"), module
        if within(module, "edge_gemma.kernels"):
            assert not within(module, "edge_gemma.kernels.reference"), "the runtime never runs the slow twins"


# ---- arrows between folders, and inside them ---------------------------------------------------------------------

MODULES = {module_name(path).removesuffix(".__init__"): path for f in ("edge_gemma", *MAPPED) for path in sources(f)}
ENTRIES = {"edge_gemma", "edge_gemma.__main__", "edge_gemma.quantize.__main__"}
"""Where a program begins: these know commands and the API, and nothing knows them."""

Graph = dict[str, set[str]]


def arrows() -> Graph:
    """Module -> the modules of this project that it imports, wherever in the file."""
    graph: Graph = {}
    for module, path in MODULES.items():
        asked = {name for name, _ in imports(path)}
        graph[module] = {known for name in asked if (known := _known(name)) and known != module}
    return {module: targets for module, targets in graph.items() if module not in ENTRIES}


def _known(name: str) -> str | None:
    """The module that an imported name is, or is in; a package that only holds others counts as none."""
    known = name if name in MODULES else name.rpartition(".")[0]
    return known if known in MODULES and known not in ENTRIES else None


def between(graph: Graph, room: Callable[[str], str]) -> Graph:
    """The same arrows, between the rooms that modules are in."""
    rooms: Graph = {}
    for module, targets in graph.items():
        rooms.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    return rooms


def circle(graph: Graph) -> list[str]:
    """Nodes that cannot be put in an order in which every arrow points down."""
    left = dict(graph)
    while free := [node for node, targets in left.items() if not targets & left.keys()]:
        for node in free:
            del left[node]
    return sorted(left)


def folder(module: str) -> str:
    """`edge_gemma.kernels.simd.dot` is in `edge_gemma.kernels.simd`; a module beside folders is a room of its own."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1] in MAPPED else 2])


def test_no_module_knows_itself_by_way_of_others() -> None:
    assert circle(arrows()) == []


def test_folders_lie_above_each_other() -> None:
    """Inside `kernels/` and `quantize/` too."""
    assert circle(between(arrows(), folder)) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"a", "c"}, "c": set(), "d": {"a"}}) == ["a", "b", "d"]


@pytest.mark.parametrize("path", sources("quantize"), ids=name)
def test_the_quantizer_knows_no_model_and_of_kernels_those_that_encode(path: Path) -> None:
    """And compiled code in one module only, that of blocks."""
    for module, _ in imports(path):
        assert module.split(".")[0] not in COMPILED_CODE or path.name == "blocks.py", module
        assert not any(within(module, f"edge_gemma.{m}") for m in ("models.gemma", "engine", "gemma")), module
        if within(module, "edge_gemma.kernels"):
            assert path.name == "blocks.py" and module.startswith("edge_gemma.kernels.encode"), module


@pytest.mark.parametrize("module", WITHOUT_NUMBA)
def test_modules_without_numba(module: str) -> None:
    assert all(not within(m, "numba") for m, top in imports(ROOT / f"kernels/{module.replace('.', '/')}.py") if top)


@pytest.mark.parametrize("path", sources("kernels"), ids=name)
def test_kernels_are_compiled_by_one_place(path: Path) -> None:
    """No jit decorator, no parallel region: `compile` asks Numba for each function, with the flags all share."""
    names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
    names |= {module.rsplit(".", 1)[-1] for module, _ in imports(path)}
    assert not names & {"njit", "jit", "prange", "vectorize", "guvectorize", "cfunc", "fastmath"}
    assert "compile_extra" not in names or path.name == "compile.py"


@pytest.mark.parametrize("folder", ["edge_gemma", "kernels", "quantize", "tests"])
def test_referees_are_asked_by_recording_scripts_only(folder: str) -> None:
    """Those are in tools/goldens/."""
    for path in sources(folder):
        found = {module.split(".")[0] for module, _ in imports(path)} & REFEREES
        assert not found, f"{name(path)} imports {found}"


def test_nothing_imports_the_benchmarks_but_their_tests() -> None:
    for folder in ("edge_gemma", "kernels", "quantize"):
        for path in sources(folder):
            assert all(module.split(".")[0] not in ("bench", "tests") for module, _ in imports(path)), path


def modules_after(statement: str) -> set[str]:
    """Top-level modules of a fresh process after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert not modules_after("import edge_gemma") & {*COMPILED_CODE, *REFEREES, "numpy", "gguf", "sentencepiece"}


@pytest.mark.parametrize("module", WITHOUT_NUMBA)
def test_modules_load_without_numba(module: str) -> None:
    assert "numba" not in modules_after(f"import edge_gemma.kernels.{module}")


def test_folders_refuse_their_bare_names() -> None:
    """`kernels` and `quantize` belong to other projects."""
    for folder in ("kernels", "quantize"):
        command = [sys.executable, "-c", f"import {folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"edge_gemma.{folder}" in done.stderr
