"""The disk cache's folder: where it is, and that nobody else can put machine code there."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma.kernels.cache_folder import cache_folder
from edge_gemma.kernels.cache_key import cache_key


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "edge_gemma")
    return lambda: [record.getMessage() for record in caplog.records]


def test_the_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    made = cache_folder()
    assert made == tmp_path / "kernels" / cache_key()
    assert made.stat().st_mode & 0o077 == 0


def test_folders_of_long_ago_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    names = ["0" * 24, "1" * 24, "of somebody else"]
    for name, days in zip(names, (31, 29, 31), strict=True):
        folder = tmp_path / "kernels" / name
        folder.mkdir(mode=0o700, parents=True)
        (folder / "a.kernel").touch()
        os.utime(folder, (time.time() - 86400 * days,) * 2)
    (tmp_path / "kernels").chmod(0o700)
    used = cache_folder()
    assert used is not None
    assert {folder.name for folder in (tmp_path / "kernels").iterdir()} == {used.name, *names[1:]}


def test_opening_a_folder_is_using_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    folder = cache_folder()
    assert folder is not None
    os.utime(folder, (0, 0))
    assert cache_folder() == folder
    assert folder.stat().st_mtime > time.time() - 60


def test_a_folder_that_cannot_be_dated_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "utime", refuse)
    assert cache_folder() == tmp_path / "kernels" / cache_key()


def loosen(base: Path, key: str) -> None:
    (base / "kernels" / key).mkdir(parents=True)
    (base / "kernels" / key).chmod(0o777)


def loosen_parent(base: Path, key: str) -> None:
    (base / "kernels" / key).mkdir(parents=True, mode=0o700)
    (base / "kernels").chmod(0o770)


def link(base: Path, key: str) -> None:
    (base / "elsewhere").mkdir()
    (base / "kernels").mkdir()
    (base / "kernels" / key).symlink_to(base / "elsewhere")


def link_parent(base: Path, _key: str) -> None:
    (base / "elsewhere").mkdir()
    (base / "kernels").symlink_to(base / "elsewhere")


def put_a_file(base: Path, _key: str) -> None:
    (base / "kernels").write_text("no folder")


@pytest.mark.skipif(os.name != "posix", reason="Windows gives each user a folder of their own")
@pytest.mark.parametrize("prepare", [loosen, loosen_parent, link, link_parent, put_a_file])
def test_a_folder_that_others_may_write_to_is_not_used(
    prepare: Callable[[Path, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: Callable[[], list[str]],
) -> None:
    prepare(tmp_path, cache_key())
    monkeypatch.setenv("EDGE_GEMMA_CACHE_DIR", str(tmp_path))
    assert cache_folder() is None and len(warnings()) == 1


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
    assert cache_folder() is None and len(warnings()) == 1
    assert not list(tmp_path.iterdir())
