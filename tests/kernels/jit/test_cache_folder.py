"""The disk cache's folder and files: where they are, and that machine code of others is not loaded from there."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_gemma import user_cache
from edge_gemma.errors import OutputError
from edge_gemma.kernels.jit.cache_file import read_object, write_object
from edge_gemma.kernels.jit.cache_folder import cache_folder
from edge_gemma.kernels.jit.cache_key import cache_key
from edge_gemma.user_cache import private_folder

posix = pytest.mark.skipif(os.name != "posix", reason="Windows gives each user a folder of their own")
Prepare = Callable[[Path, str, pytest.MonkeyPatch], Path]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "edge_gemma")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of the user's choice: it exists."""
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(params=[0o002, 0o000, 0o077, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if `path` belonged to somebody else, who is not root."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    return path


# ---- the place ---------------------------------------------------------------------------------------------------


@posix
def test_every_folder_is_ours_alone_whatever_the_umask(
    umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path / "a/b"))
    made = [cache_folder(), private_folder("models")]
    assert made == [tmp_path / "a/b/kernels" / cache_key(), tmp_path / "a/b/models"]
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {mode(folder) for folder in folders} == {0o700} and len(folders) == 5
    assert cache_folder() == made[0] and not warnings()


@posix
def test_what_earlier_versions_made_is_mended(
    umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    """They gave all but the last folder the mode that the umask left."""
    monkeypatch.delenv("EDGE_GEMMA_CACHE_DIR")
    monkeypatch.setattr(user_cache, "user_cache_path", lambda *_, **__: tmp_path / "edge-gemma")
    old = tmp_path / "edge-gemma/kernels" / cache_key()
    for folder in (old.parent.parent, old.parent, old):
        folder.mkdir()
        folder.chmod(0o777)
    assert cache_folder() == old and not warnings()
    assert {mode(folder) for folder in (old.parent.parent, old.parent, old)} == {0o700}


@posix
@pytest.mark.parametrize("loose", [0o775, 0o770, 0o1777])
def test_a_folder_of_the_users_choice_stays_as_it_is(loose: int, named: Path) -> None:
    """It need not be for this alone: it is that of a group, or of all where nobody can rename what another made."""
    named.chmod(loose)
    folder = cache_folder()
    assert folder and mode(folder) == mode(folder.parent) == 0o700
    assert named.stat().st_mode & 0o7777 == loose


def test_the_users_own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", "~/x")
    assert private_folder("kernels") == tmp_path / "x/kernels"


def test_a_relative_folder_is_in_the_working_directory_of_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", "x")
    assert private_folder("kernels") == tmp_path / "x/kernels"


def test_a_blank_name_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", " ")
    monkeypatch.setattr(user_cache, "user_cache_path", lambda *_, **__: tmp_path / "edge-gemma")
    assert private_folder() == tmp_path / "edge-gemma"


@posix
def test_a_link_to_the_place_where_all_shall_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path / "link"))
    assert private_folder("kernels").resolve() == tmp_path.resolve() / "disk/kernels"


# ---- no place ----------------------------------------------------------------------------------------------------


def link(base: Path, key: str, _: pytest.MonkeyPatch) -> Path:
    (base / "elsewhere").mkdir()
    (base / "kernels").mkdir(mode=0o700)
    (base / "kernels" / key).symlink_to(base / "elsewhere")
    return base / "kernels" / key


def link_kernels(base: Path, _key: str, _: pytest.MonkeyPatch) -> Path:
    (base / "elsewhere").mkdir()
    (base / "kernels").symlink_to(base / "elsewhere")
    return base / "kernels"


def link_to_nothing(base: Path, _key: str, _: pytest.MonkeyPatch) -> Path:
    (base / "kernels").symlink_to(base / "elsewhere")
    return base / "kernels"


def put_a_file(base: Path, _key: str, _: pytest.MonkeyPatch) -> Path:
    (base / "kernels").write_text("no folder")
    return base / "kernels"


def put_a_file_above(base: Path, _key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (base / "file").write_text("no folder")
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(base / "file/a/b"))
    return base / "file"


def give_away(base: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (base / "kernels" / key).mkdir(parents=True)
    return to_another_user(base / "kernels" / key, monkeypatch)


def give_kernels_away(base: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (base / "kernels" / key).mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(base / "kernels" / key, 0, -1)
    return to_another_user(base / "kernels", monkeypatch)


def open_to_all(base: Path, _key: str, _: pytest.MonkeyPatch) -> Path:
    base.chmod(0o777)
    return base


def no_modes(base: Path, _key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk that keeps none, such as exFAT: all is everybody's."""
    (base / "kernels").mkdir()
    (base / "kernels").chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda _self, _mode: None)
    return base / "kernels"


def read_only(base: Path, _key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    return base / "kernels"


def unknown_user(_base: Path, _key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", "~nobody-of-that-name/x")
    return Path("EDGE_GEMMA_CACHE_DIR")


@posix
@pytest.mark.parametrize(
    "prepare",
    [
        link,
        link_kernels,
        link_to_nothing,
        put_a_file,
        put_a_file_above,
        give_away,
        give_kernels_away,
        open_to_all,
        no_modes,
        read_only,
        unknown_user,
    ],
)
def test_a_folder_that_will_not_do_is_named(
    prepare: Prepare, named: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    at_fault = prepare(named, cache_key(), monkeypatch)
    assert cache_folder() is None
    (warning,) = warnings()
    assert warning.startswith("kernels are not cached") and "set EDGE_GEMMA_CACHE_DIR to" in warning
    others = [path for path in (named, *named.rglob("*")) if path.is_relative_to(at_fault) and path != at_fault]
    assert str(at_fault) in warning and not any(str(path) in warning for path in others)


@pytest.mark.parametrize("prepare", [put_a_file_above, unknown_user, pytest.param(open_to_all, marks=posix)])
def test_the_demos_model_is_kept_by_the_same_rules(
    prepare: Prepare, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_gemma.commands import demo_model

    assert demo_model.files().source.parent == named / "models"
    at_fault = prepare(named, "", monkeypatch)
    with pytest.raises(OutputError, match="set EDGE_GEMMA_CACHE_DIR to") as caught:
        demo_model.files()
    assert str(at_fault) in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="no such account elsewhere")
def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]) -> None:
    """A container's user may have neither a home in the environment nor an entry in the user database."""
    import pwd

    def unknown(_uid: int) -> object:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "EDGE_GEMMA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    assert cache_folder() is None
    (warning,) = warnings()
    assert "home" in warning and "set EDGE_GEMMA_CACHE_DIR to" in warning
    assert not list(tmp_path.iterdir())


# ---- files of others ---------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A whole one."""
    path = tmp_path / "key/a.kernel"
    path.parent.mkdir()
    write_object(path, b"code")
    assert read_object(path) == b"code"
    return path


@posix
def test_a_file_of_another_user(file: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]) -> None:
    to_another_user(file, monkeypatch)
    assert read_object(file) is None
    assert len(warnings()) == 1 and f"{file}: it belongs to another user" in warnings()[0]


@posix
@pytest.mark.parametrize("loose", [0o620, 0o602])
def test_a_file_that_others_may_write_to(loose: int, file: Path, warnings: Callable[[], list[str]]) -> None:
    file.chmod(loose)
    assert read_object(file) is None
    assert len(warnings()) == 1 and f"{file}: it may be written to by others, its mode is {loose:04o}" in warnings()[0]


@pytest.mark.parametrize("there", ["key/b.kernel", "another/a.kernel"])
def test_a_file_that_was_moved(there: str, file: Path, warnings: Callable[[], list[str]]) -> None:
    """It is of another kernel, or of other sources or another CPU."""
    moved = file.parents[1] / there
    moved.parent.mkdir(exist_ok=True)
    file.rename(moved)
    assert read_object(moved) is None and len(warnings()) == 1


@posix
def test_what_root_made_is_believed(file: Path) -> None:
    """A container's image has its kernels compiled by root, and runs as somebody else."""
    status = list(file.stat())
    status[4] = 0
    assert user_cache.fault_of(os.stat_result(status)) is None
    status[4] = os.geteuid() + 1
    assert user_cache.fault_of(os.stat_result(status)) == f"belongs to another user, {os.geteuid() + 1}"


# ---- age ---------------------------------------------------------------------------------------------------------


def test_folders_of_long_ago_are_removed(named: Path) -> None:
    names = ["0" * 24, "1" * 24, "of somebody else"]
    for name, days in zip(names, (31, 29, 31), strict=True):
        folder = named / "kernels" / name
        folder.mkdir(mode=0o700, parents=True)
        (folder / "a.kernel").touch()
        os.utime(folder, (time.time() - 86400 * days,) * 2)
    used = cache_folder()
    assert used is not None
    assert {folder.name for folder in (named / "kernels").iterdir()} == {used.name, *names[1:]}


def test_opening_a_folder_is_using_it(named: Path) -> None:
    folder = cache_folder()
    assert folder is not None
    os.utime(folder, (0, 0))
    assert cache_folder() == folder
    assert folder.stat().st_mtime > time.time() - 60


def test_a_folder_that_cannot_be_dated_is_used(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "utime", refuse)
    assert cache_folder() == named / "kernels" / cache_key()
