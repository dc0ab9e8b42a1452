"""Limits of containers: trees of control groups as Linux shows them, and what the package makes of their limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_gemma import Gemma, MemoryBudgetError, cgroup, cores
from edge_gemma.kernels.jit import workers
from edge_gemma.quantize import convert
from tests.conftest import TinyGguf

ROOT = Path(__file__).parent.parent
MB = 2**20
SYSTEM = 64 * 2**30


class System:
    """A process's files in `proc`, and hierarchies beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, folder / "proc"
        self.process.mkdir()
        self.mounted: list[str] = []
        self.groups: list[str] = []
        self.mount("tmpfs", "rw,mode=755", "elsewhere")

    def mount(self, kind: str, options: str, where: str, root: str = "/") -> None:
        """A hierarchy whose group `root` is shown at the folder `where`."""
        place = str(self.folder / where).replace("\\", "\\134").replace(" ", "\\040")
        self.mounted.append(
            f"{31 + len(self.mounted)} 23 0:28 {root} {place} rw,nosuid shared:9 - {kind} {kind} {options}"
        )
        (self.process / "mountinfo").write_text("\n".join(self.mounted) + "\n")

    def member(self, line: str) -> None:
        """A line of the process's cgroup file."""
        self.groups.append(line)
        (self.process / "cgroup").write_text("\n".join(self.groups) + "\n")

    def write(self, where: str, **files: str) -> None:
        """Files of a group; "__" stands for the dot of their names."""
        (self.folder / where).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / where / name.replace("__", ".")).write_text(text + "\n")

    @property
    def limits(self) -> tuple[float | None, int | None]:
        return cgroup.cpu_quota(self.process), cgroup.memory_left(self.process)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def version_2(system: System, group: str, root: str = "/", where: str = "cgroup") -> None:
    system.mount("cgroup2", "rw,nsdelegate", where, root)
    system.member(f"0::{group}")


def version_1(system: System, group: str, root: str = "/") -> None:
    system.mount("cgroup", "rw,cpu,cpuacct", "cpu", root)
    system.mount("cgroup", "rw,memory", "memory", root)
    system.member("12:pids:/other")
    system.member(f"5:cpu,cpuacct:{group}")
    system.member(f"4:memory:{group}")


def test_no_linux_no_limits(tmp_path: Path) -> None:
    assert cgroup.cpu_quota(tmp_path) is None and cgroup.memory_left(tmp_path) is None


def test_limits_of_version_2(system: System) -> None:
    version_2(system, "/")
    stat = f"anon {50 * MB}\ninactive_file {20 * MB}\nactive_file {10 * MB}\nslab_reclaimable {5 * MB}\nshmem {MB}"
    system.write("cgroup", cpu__max="150000 100000", memory__max=str(512 * MB), memory__current=str(100 * MB))
    system.write("cgroup", memory__stat=stat)
    assert system.limits == (1.5, (512 - 100 + 35) * MB)


def test_limits_of_version_1(system: System) -> None:
    version_1(system, "/unit")
    system.write("cpu/unit", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    system.write("memory/unit", memory__limit_in_bytes=str(512 * MB), memory__usage_in_bytes=str(100 * MB))
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {20 * MB}\ntotal_active_file {10 * MB}"
    system.write("memory/unit", memory__stat=stat)
    assert system.limits == (0.5, (512 - 100 + 30) * MB)


def test_no_limits_of_version_2(system: System) -> None:
    version_2(system, "/unit")
    system.write("cgroup/unit", cpu__max="max 100000", memory__max="max", memory__high="max", memory__current="5")
    assert system.limits == (None, None)


def test_no_quota_of_version_1(system: System) -> None:
    version_1(system, "/")
    system.write("cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert system.limits == (None, None)


@pytest.mark.parametrize("tight", ["", "/slice", "/slice/unit"])
def test_the_lowest_limit_on_the_way_up_counts(system: System, tight: str) -> None:
    version_2(system, "/slice/unit")
    for group in ("", "/slice", "/slice/unit"):
        cpu, memory = ("200000", 1024) if group == tight else ("400000", 4096)
        files = {"cpu__max": f"{cpu} 100000", "memory__max": str(memory * MB), "memory__current": str(24 * MB)}
        system.write(f"cgroup{group}", **files)
    assert system.limits == (2.0, 1000 * MB)


def test_a_full_group_above_counts(system: System) -> None:
    """What is left counts and not the limit: others in the group use it, too."""
    version_2(system, "/slice/unit")
    system.write("cgroup/slice", memory__max=str(900 * MB), memory__current=str(890 * MB))
    system.write("cgroup/slice/unit", memory__max=str(500 * MB), memory__current=str(100 * MB))
    assert system.limits == (None, 10 * MB)


def test_the_limit_that_slows_a_group_down_counts(system: System) -> None:
    version_2(system, "/")
    system.write("cgroup", memory__max=str(900 * MB), memory__high=str(300 * MB), memory__current=str(100 * MB))
    assert system.limits == (None, 200 * MB)


def test_groups_beside_ours_do_not_count(system: System) -> None:
    version_2(system, "/slice/unit")
    system.write("cgroup/slice/other", cpu__max="1000 100000", memory__max="1", memory__current="1")
    assert system.limits == (None, None)


@pytest.mark.parametrize(
    ("group", "root"),
    [("/docker/1f0c", "/docker/1f0c"), ("/", "/docker/1f0c"), ("/../../x", "/"), ("/docker/1f0c", "/other")],
)
@pytest.mark.parametrize("make", [version_1, version_2])
def test_a_container_that_sees_its_own_group_only(
    system: System, make: Callable[[System, str, str], None], group: str, root: str
) -> None:
    make(system, group, root)
    system.write("cgroup", cpu__max="300000 100000", memory__max=str(70 * MB), memory__current=str(MB))
    system.write("cpu", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    system.write("memory", memory__limit_in_bytes=str(70 * MB), memory__usage_in_bytes=str(MB))
    assert system.limits == (3.0, 69 * MB)


def test_a_group_whose_folder_is_not_there(system: System) -> None:
    """Some runtimes show a group's root under the name of the whole."""
    version_2(system, "/docker/1f0c")
    system.write("cgroup", cpu__max="300000 100000")
    assert system.limits == (3.0, None)


def test_both_versions_at_a_time(system: System) -> None:
    version_1(system, "/")
    version_2(system, "/unit")
    system.write("cpu", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    system.write("cgroup/unit", memory__max=str(9 * MB), memory__current=str(8 * MB))
    assert system.limits == (4.0, MB)


def test_more_used_than_allowed_leaves_nothing(system: System) -> None:
    version_2(system, "/")
    system.write("cgroup", memory__max=str(5 * MB), memory__current=str(6 * MB))
    assert system.limits == (None, 0)


def test_folders_with_spaces_and_backslashes(system: System) -> None:
    version_2(system, "/my unit", where="control groups")
    system.write("control groups/my unit", cpu__max="100000 100000")
    assert system.limits == (1.0, None)


@pytest.mark.parametrize("text", ["", "max", "100000", "100000 0", "many few"])
def test_files_that_say_nothing(system: System, text: str) -> None:
    version_2(system, "/")
    system.write("cgroup", cpu__max=text, memory__max=text, memory__current=text, memory__stat="")
    assert cgroup.cpu_quota(system.process) is None


# ---- what is made of it ------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """8 processors, of which 4 are physical cores, and 64 GB."""
    monkeypatch.setattr(cores, "_allowed", lambda: set(range(8)))
    monkeypatch.setattr(cores, "_linux_cores", lambda _allowed, _sysfs: 4)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=SYSTEM))
    return monkeypatch


@pytest.mark.parametrize(
    ("quota", "threads", "processors"), [(None, 4, 8), (0.2, 1, 1), (1.99, 1, 1), (2.0, 2, 2), (6.5, 4, 6), (99, 4, 8)]
)
def test_no_more_threads_than_the_quota(
    machine: pytest.MonkeyPatch, quota: float | None, threads: int, processors: int
) -> None:
    machine.setattr(cgroup, "cpu_quota", lambda: quota)
    assert cores.default_threads() == threads
    assert cores.usable_processors() == convert._default_threads() == processors


@pytest.mark.parametrize(("left", "available"), [(None, SYSTEM), (0, 0), (MB, MB), (2 * SYSTEM, SYSTEM)])
def test_no_more_memory_than_the_group_has_left(machine: pytest.MonkeyPatch, left: int | None, available: int) -> None:
    machine.setattr(cgroup, "memory_left", lambda: left)
    assert cores.available_memory() == available


def test_compiling_keeps_to_the_limits(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(cgroup, "cpu_quota", lambda: 3.0)
    machine.setattr(cgroup, "memory_left", lambda: SYSTEM)
    assert workers._room() == 2
    machine.setattr(cgroup, "memory_left", lambda: 4 * workers.MEMORY)
    assert workers._room() == 1


def test_a_model_keeps_to_the_limits(tiny_gguf: TinyGguf, machine: pytest.MonkeyPatch) -> None:
    machine.setattr(cgroup, "memory_left", lambda: 2_000_000)
    with pytest.raises(MemoryBudgetError, match="the budget is 2000000"):
        Gemma(tiny_gguf("gemma3-270m"), context=1024, kv_type="f32", chunk=32)


@pytest.mark.parametrize("folder", ["edge_gemma", "kernels", "quantize"])
def test_memory_is_asked_for_in_one_place(folder: str) -> None:
    """What asks the system instead is killed in a container."""
    asking = {path.name for path in (ROOT / folder).rglob("*.py") if "virtual_memory" in path.read_text("utf-8")}
    assert asking <= {"cores.py"}


def test_this_machine_answers() -> None:
    assert cores.default_threads() >= 1 and cores.available_memory() > 0


def test_counting_needs_no_numpy() -> None:
    code = "import edge_gemma.cores, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
