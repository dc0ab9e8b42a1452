"""What modules consist of, in whatever form they are installed: files, a zip archive, a frozen application.

Imports none of them, and does not know what they are for.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, all_suffixes
from pathlib import Path
from types import CodeType

SUFFIXES = tuple(all_suffixes())


def package_contents(name: str, places: Iterable[str]) -> dict[str, bytes | None]:
    """What each module of package `name` and of those inside it consists of, by its name without the package's.

    None where that cannot be told. `places` is the package's `__path__`.
    """
    contents: dict[str, bytes | None] = {}
    for place in places:
        contents |= dict(_files(Path(place)) or _modules(f"{name}.", place))
    return {module.removeprefix(f"{name}."): content for module, content in contents.items()}


def module_content(name: str, places: Iterable[str]) -> bytes | None:
    """What a module consists of; None if that cannot be told. `places` is the `__path__` of the package it is in."""
    spec = _find(name, list(places))
    return _content(spec) if spec else None


def package_places(name: str) -> list[str]:
    """The `__path__` that a package has or would have, which is not imported."""
    spec = _find(name, None)
    return list(spec.submodule_search_locations or []) if spec else []


def _files(folder: Path) -> list[tuple[str, bytes | None]]:
    """Modules in a folder of a disk, and in folders there. Source counts, and not what was made of it beside it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(SUFFIXES) and "__pycache__" not in path.parts and path.is_file():
            name = path.relative_to(folder).as_posix().partition(".")[0].replace("/", ".")
            if name not in found or path.suffix == ".py":
                found[name] = path
    return [(name, path.read_bytes()) for name, path in found.items()]


def _modules(prefix: str, place: str) -> Iterator[tuple[str, bytes | None]]:
    """Modules at a place that only their importer knows."""
    for module in pkgutil.iter_modules([place], prefix):
        spec = _find(module.name, [place])
        yield module.name, _content(spec) if spec else None
        for inner in (spec.submodule_search_locations or []) if spec else []:
            yield from _modules(f"{module.name}.", inner)


def _find(name: str, places: list[str] | None) -> ModuleSpec | None:
    """As `importlib.util.find_spec`, which would import the package that the module is in."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find(name, places) if find else None
        if spec is not None:
            return spec
    return None


def _content(spec: ModuleSpec) -> bytes | None:
    """Its file as the loader gives it, else its code."""
    read = getattr(spec.loader, "get_data", None)
    if read and spec.origin and spec.origin.endswith(SUFFIXES):
        with suppress(OSError):  # a frozen application's modules have names of files that do not exist
            return bytes(read(spec.origin))
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code else None
    return repr(_plain(code)).encode("utf-8", "surrogatepass") if code else None


def _plain(value: object) -> object:
    """Code, and constants in it, as values with one way to write them.

    Without the names of files and numbers of lines. `marshal` writes equal code in different ways, depending on which
    objects are shared with the rest of the process.
    """
    match value:
        case CodeType():
            arguments = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
            names = value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
            return arguments, names, value.co_code, value.co_exceptiontable, _plain(value.co_consts)
        case frozenset():
            return sorted(repr(_plain(item)) for item in value)
        case tuple():
            return [_plain(item) for item in value]
    return value
