"""cgroups: what is read off recorded hosts, what is written on fake ones, what happens on this one.

The tests of the last part run on the machine at hand. Where it lets us make cgroups they demand
what cgroups promise; where it does not (an ordinary user without delegation) they demand that this
is said: no controller claimed, limits backed by sampling, a remedy given.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from casemate.protocol.errors import LocalViolation
from casemate.protocol.pipeline import Limits
from casemate.sandbox import cgroup
from casemate.sandbox.cgroup import (
    Backing,
    Cgroup,
    CgroupFacts,
    CgroupManager,
    Hierarchy,
    locate,
    own_cpu_quota,
    own_memory_limit,
    own_memory_room,
    parse_membership,
    parse_mountinfo,
    probe,
    settle,
    sweep,
)

MIB = 1024 * 1024


def limits(memory: int = 64 * MIB, cpu: float | None = None, pids: int = 64) -> Limits:
    return Limits(memory=memory, cpu=cpu, pids=pids, files=64, tmp=MIB, disk=MIB, output=MIB)


# --- recorded hosts ----------------------------------------------------------------------------

SYSTEMD_V2 = (
    "24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n"
    "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 "
    "rw,nsdelegate,memory_recursiveprot\n"
)
DOCKER_V2 = (
    "1045 1044 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup "
    "rw,nsdelegate,memory_recursiveprot\n"
)
V1 = (
    "25 18 0:20 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755\n"
    "26 25 0:21 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:9 - cgroup cgroup "
    "rw,xattr,release_agent=/usr/lib/systemd/systemd-cgroups-agent,name=systemd\n"
    "28 25 0:23 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:10 - cgroup cgroup "
    "rw,memory\n"
    "29 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:11 - cgroup "
    "cgroup rw,cpuacct,cpu\n"
    "30 25 0:25 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup "
    "rw,pids\n"
)
V1_MEMBERSHIP = (
    "11:pids:/user.slice\n"
    "6:memory:/user.slice\n"
    "4:cpuacct,cpu:/user.slice/a:b\n"
    "1:name=systemd:/user.slice/user-0.slice/session-1.scope\n"
)
DOCKER_V1 = (
    "700 699 0:23 /docker/0af1 /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:10 - "
    "cgroup cgroup rw,memory\n"
    "701 699 0:25 /docker/0af1 /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime master:12 - "
    "cgroup cgroup rw,pids\n"
)
HYBRID = (
    V1 + "27 25 0:22 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:13 - cgroup2 "
    "cgroup2 rw,nsdelegate\n"
)


def test_a_systemd_v2_host_is_one_tree() -> None:
    [mount] = parse_mountinfo(SYSTEMD_V2)
    assert (mount.point, mount.unified, mount.writable) == ("/sys/fs/cgroup", True, True)
    membership = parse_membership("0::/user.slice/user-1000.slice/session-3.scope\n")
    own = "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"
    assert locate(mount, membership) == own


def test_a_container_on_v2_is_mounted_read_only() -> None:
    [mount] = parse_mountinfo(DOCKER_V2)
    assert not mount.writable
    assert locate(mount, parse_membership("0::/\n")) == "/sys/fs/cgroup"


def test_on_v1_each_controller_is_a_tree_and_some_share_one() -> None:
    mounts = parse_mountinfo(V1)
    membership = parse_membership(V1_MEMBERSHIP)
    assert {tuple(sorted(m.controllers)): locate(m, membership) for m in mounts} == {
        ("memory",): "/sys/fs/cgroup/memory/user.slice",
        ("cpu", "cpuacct"): "/sys/fs/cgroup/cpu,cpuacct/user.slice/a:b",
        ("pids",): "/sys/fs/cgroup/pids/user.slice",
    }


def test_a_v1_container_sees_its_own_folder_as_the_mount_point() -> None:
    memory, pids = parse_mountinfo(DOCKER_V1)
    membership = parse_membership("6:memory:/docker/0af1\n11:pids:/docker/0af1/x\n")
    assert locate(memory, membership) == "/sys/fs/cgroup/memory"
    assert locate(pids, membership) == "/sys/fs/cgroup/pids/x"
    assert not memory.writable


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("/docker/0af1", "/docker/0af10"),  # a longer name is another folder
        ("/docker/0af1", "/"),
        ("/..", "/a"),  # mounted in another cgroup namespace
        ("/", "/../other"),
    ],
)
def test_a_folder_outside_the_mount_is_not_ours_to_find(root: str, folder: str) -> None:
    [mount] = parse_mountinfo(f"1 2 0:3 {root} /m rw - cgroup cgroup rw,memory\n")
    assert locate(mount, {"memory": folder}) is None


def test_a_hybrid_host_has_both() -> None:
    mounts = parse_mountinfo(HYBRID)
    assert sorted(m.unified for m in mounts) == [False, False, False, True]
    membership = parse_membership(V1_MEMBERSHIP + "0::/user.slice/user-0.slice\n")
    assert locate(mounts[-1], membership) == "/sys/fs/cgroup/unified/user.slice/user-0.slice"


@pytest.mark.parametrize(
    "over",
    [
        "90 35 0:99 / /sys/fs/cgroup rw - tmpfs none rw\n",
        "90 24 0:99 / /sys/fs rw - tmpfs none rw\n",
        "90 24 0:99 / /sys rw - tmpfs none rw\n",
    ],
)
def test_a_mount_that_another_covers_is_not_there(over: str) -> None:
    assert parse_mountinfo(SYSTEMD_V2 + over) == ()
    [again] = parse_mountinfo(
        SYSTEMD_V2 + over + "91 90 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    assert again.point == "/sys/fs/cgroup"
    beside = "90 24 0:99 / /sys/fs/cgroups rw - tmpfs none rw\n"
    assert parse_mountinfo(SYSTEMD_V2 + beside) == parse_mountinfo(SYSTEMD_V2)


def test_mountinfo_may_escape_repeat_and_leave_out() -> None:
    [mount] = parse_mountinfo(
        "garbage\n\n1 2 0:3 /a\\040b /c\\134d rw shared:1 master:2 propagate_from:3 - cgroup2 x r\n"
    )
    assert (mount.root, mount.point) == ("/a b", "/c\\d")


# --- fake hosts --------------------------------------------------------------------------------

V2_FILES = (
    "cgroup.procs",
    "cgroup.events",
    "cgroup.type",
    "cgroup.kill",
    "cpu.stat",
    "memory.stat",
)
V2_CONTROLLER_FILES = {
    "memory": ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events"),
    "pids": ("pids.max", "pids.events", "pids.current"),
    "cpu": ("cpu.max",),
}
V1_CONTROLLER_FILES = {
    "memory": (
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.swappiness",
        "memory.oom_control",
        "cgroup.event_control",
    ),
    "pids": ("pids.max", "pids.events"),
    "cpu": ("cpu.cfs_quota_us",),
    "cpuacct": ("cpuacct.usage",),
}


class FakeHost:
    """A directory laid out like a host, with folders that fill like the kernel's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.writes: list[tuple[str, str]] = []
        self.refused: dict[Path, int] = {}  # folder → errno of a mkdir in it
        self.missing: set[str] = set()  # files this kernel does not have
        (root / "proc/self/ns").mkdir(parents=True)
        monkeypatch.setattr(cgroup, "_mkdir", self.mkdir)
        monkeypatch.setattr(cgroup, "_rmdir", self.rmdir)
        monkeypatch.setattr(cgroup, "_write", self.write)

    def lay(self, mountinfo: str, membership: str) -> None:
        (self.root / "proc/self/mountinfo").write_text(mountinfo)
        (self.root / "proc/self/cgroup").write_text(membership)
        for mount in parse_mountinfo(mountinfo):
            point = self.root / mount.point.lstrip("/")
            self.fill(point, mount.controllers, mount.unified)
            own = locate(mount, parse_membership(membership))
            if own is None:
                continue
            folder = point
            for part in (self.root / own.lstrip("/")).relative_to(point).parts:
                folder = folder / part
                self.fill(folder, mount.controllers, mount.unified)
            if mount.unified:
                (point / "cgroup.type").unlink()
                (folder / "cgroup.procs").write_text(f"{os.getpid()}\n4711\n")

    def fill(self, folder: Path, controllers: frozenset[str], unified: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = [] if unified else ["tasks", "cgroup.procs"]
        if unified:
            names += V2_FILES
        for controller in controllers:
            names += (V2_CONTROLLER_FILES if unified else V1_CONTROLLER_FILES)[controller]
        for name in set(names) - self.missing:
            (folder / name).write_bytes(b"")  # not touch: it calls os.open, which a test breaks
        if unified:
            (folder / "cgroup.controllers").write_text(" ".join(sorted(controllers)))
            (folder / "cgroup.subtree_control").write_bytes(b"")

    def offer(self, path: str, controllers: str, on: str = "") -> Path:
        folder = self.root / "sys/fs/cgroup" / path
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(on)
        return folder

    def mkdir(self, name: str, dir_fd: int) -> None:
        base = Path(os.readlink(f"/proc/self/fd/{dir_fd}"))
        if base in self.refused:
            raise OSError(self.refused[base], os.strerror(self.refused[base]))
        (base / name).mkdir()
        if (base / "cgroup.subtree_control").exists():
            on = (base / "cgroup.subtree_control").read_text().split()
            self.fill(base / name, frozenset(on), unified=True)
        else:
            had = {c for c, files in V1_CONTROLLER_FILES.items() if (base / files[0]).exists()}
            self.fill(base / name, frozenset(had), unified=False)

    def rmdir(self, name: str, dir_fd: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        if not folder.exists():
            raise FileNotFoundError(folder)
        assert not any(child.is_dir() for child in folder.iterdir())
        shutil.rmtree(folder)

    def write(self, path: str, text: str, dir_fd: int) -> None:
        file = Path(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        if not file.exists():
            raise FileNotFoundError(file)
        self.writes.append((path, text))
        if path.endswith("subtree_control"):
            on = set(file.read_text().split()) | {text.removeprefix("+")}
            text = " ".join(sorted(on))
        file.write_text(text)

    def probe(self) -> CgroupFacts:
        return probe(self.root)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    return FakeHost(tmp_path, monkeypatch)


SCOPE = "user.slice/user-0.slice/session-1.scope"


def systemd_host(host: FakeHost, own: str = SCOPE) -> None:
    host.lay(SYSTEMD_V2, f"0::/{own}\n")
    host.offer("", "cpu io memory pids", "cpu memory pids")
    host.offer("user.slice", "cpu memory pids", "cpu memory pids")
    host.offer("user.slice/user-0.slice", "cpu memory pids", "memory pids")
    host.offer(own, "memory pids")


def test_root_on_systemd_makes_a_sibling_of_its_scope(host: FakeHost) -> None:
    systemd_host(host)
    facts = host.probe()
    [branch] = facts.branches
    assert facts.hierarchy is Hierarchy.V2
    assert branch.base == host.root / "sys/fs/cgroup/user.slice/user-0.slice"
    assert branch.controllers == {"memory", "pids", "cpu"}
    assert branch.enable == {"cpu"}
    assert branch.can_kill
    assert (facts.problems, facts.remedy) == ((), "")


def test_a_spawn_on_v2_writes_these_files_and_no_more(host: FakeHost) -> None:
    systemd_host(host)
    manager = CgroupManager(host.probe())
    assert sorted(host.writes) == [
        ("cgroup.subtree_control", "+cpu"),
        ("cgroup.subtree_control", "+cpu"),
        ("cgroup.subtree_control", "+memory"),
        ("cgroup.subtree_control", "+pids"),
    ]
    host.writes.clear()
    group = manager.create("a-1", limits(memory=5 * MIB, pids=7))
    assert host.writes == [
        ("a-1/memory.max", str(5 * MIB)),
        ("a-1/memory.swap.max", "0"),
        ("a-1/memory.oom.group", "1"),
        ("a-1/pids.max", "7"),
    ]
    with group.join() as join:
        assert join.tasks == ()
        assert join.unified is not None
        assert Path(os.readlink(f"/proc/self/fd/{join.unified}")) == group.folders[0]
    host.writes.clear()
    manager.create("a-2", limits(cpu=1.5))
    assert host.writes[-1] == ("a-2/cpu.max", "150000 100000")
    host.writes.clear()
    group.kill()
    assert host.writes == [("a-1/cgroup.kill", "1")]
    assert manager.close() == ()
    assert not list((host.root / "sys").rglob("casemate*"))


def test_a_kernel_without_swap_accounting_is_not_asked_for_it(host: FakeHost) -> None:
    host.missing = {"memory.swap.max"}
    systemd_host(host)
    manager = CgroupManager(host.probe())
    manager.create("a-1", limits())
    assert "a-1/memory.swap.max" not in dict(host.writes)
    manager.close()


def test_an_ordinary_user_on_systemd_is_told_of_delegation(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_host(host)
    (host.root / "run/systemd/system").mkdir(parents=True)
    own = host.root / "sys/fs/cgroup" / SCOPE
    host.refused = {own: errno.EACCES, own.parent: errno.EACCES}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    facts = host.probe()
    assert facts.branches == ()
    assert "systemd-run --user --scope -p Delegate=yes" in facts.remedy
    assert any("Permission denied" in problem for problem in facts.problems)
    assert facts.backing(limits(cpu=1.0)) == {
        "memory": Backing.SAMPLED,
        "pids": Backing.SAMPLED,
        "cpu": Backing.NONE,
    }


def delegated(host: FakeHost, monkeypatch: pytest.MonkeyPatch, own: str) -> Path:
    """A user's delegated scope, at `own` or above it; all else belongs to root."""
    systemd_host(host, own)
    scope = host.root / "sys/fs/cgroup/user.slice/user-0.slice/run-7.scope"
    (scope / "cgroup.controllers").write_text("memory pids")
    above = scope.parent
    host.refused = dict.fromkeys((above, *above.parents), errno.EACCES)
    monkeypatch.setattr(cgroup, "_is_writable", lambda folder: folder.is_relative_to(scope))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return scope


def test_in_a_delegated_scope_we_may_settle_when_alone(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = delegated(host, monkeypatch, "user.slice/user-0.slice/run-7.scope")
    facts = host.probe()
    assert facts.controllers == set()  # but the kill works already
    assert facts.can_kill
    assert facts.settle_in is None  # 4711 is there as well, and is not ours to move
    (scope / "cgroup.procs").write_text(f"{os.getpid()}\n")
    facts = host.probe()
    assert facts.settle_in == scope
    assert "settle" in facts.remedy

    leaf = scope / f"casemate-supervisor-{os.getpid()}"
    host.fill(leaf, frozenset(), unified=True)
    (scope / "cgroup.procs").write_text("")
    (host.root / "proc/self/cgroup").write_text(
        f"0::/user.slice/user-0.slice/run-7.scope/{leaf.name}\n"
    )
    settled = settle(facts, host.root)
    assert (leaf / "cgroup.procs").read_text() == "0"
    [branch] = settled.branches
    assert branch.base == scope
    assert branch.enable == {"memory", "pids"}
    assert settled.settle_in is None
    assert "controllers not to be had: cpu" in settled.problems


def test_nobody_moves_where_settling_gives_nothing(host: FakeHost) -> None:
    systemd_host(host)
    facts = host.probe()
    assert settle(facts, host.root) is facts


def test_the_root_of_all_hands_out_controllers_in_spite_of_its_processes(host: FakeHost) -> None:
    host.lay(SYSTEMD_V2, "0::/\n")
    host.offer("", "cpu memory pids", "")
    [branch] = host.probe().branches
    assert branch.base == host.root / "sys/fs/cgroup"
    assert branch.enable == {"cpu", "memory", "pids"}


def test_a_containers_root_does_not_and_says_so(host: FakeHost) -> None:
    host.lay(DOCKER_V2.replace(" ro,", " rw,"), "0::/\n")
    folder = host.offer("", "cpu memory pids", "")
    (folder / "cgroup.type").touch()
    facts = host.probe()
    [branch] = facts.branches
    assert (branch.controllers, branch.can_kill) == (frozenset(), True)
    assert "controllers not to be had: memory, pids, cpu" in facts.problems
    assert facts.remedy


def test_a_read_only_tree_is_said_to_be(host: FakeHost) -> None:
    host.lay(DOCKER_V2, "0::/\n")
    facts = host.probe()
    assert facts.branches == ()
    assert "cgroup v2: /sys/fs/cgroup is mounted read-only" in facts.problems
    assert facts.remedy


def test_a_host_without_cgroups_is_said_to_be(host: FakeHost) -> None:
    host.lay("", "")
    facts = host.probe()
    assert (facts.hierarchy, facts.branches) == (Hierarchy.NONE, ())
    assert "no cgroup hierarchy is mounted" in facts.problems
    assert facts.remedy
    empty = CgroupManager(facts).create("a-1", limits())
    assert (empty.folders, empty.usage()) == ((), cgroup.Measured())
    assert empty.is_empty()
    empty.kill()
    assert empty.remove_nowait() == ()


def test_a_spawn_on_v1_writes_these_files(host: FakeHost) -> None:
    host.lay(V1, V1_MEMBERSHIP)
    facts = host.probe()
    assert facts.hierarchy is Hierarchy.V1
    assert facts.controllers == {"memory", "pids", "cpu", "cpuacct"}
    manager = CgroupManager(facts)
    host.writes.clear()
    group = manager.create("a-1", limits(memory=5 * MIB, cpu=0.001, pids=7))
    written = dict(host.writes)
    assert written.pop("a-1/cgroup.event_control").split()[0] == str(group.oom_fd)
    assert written == {
        "a-1/cpu.cfs_quota_us": "1000",  # the kernel's least
        "a-1/memory.limit_in_bytes": str(5 * MIB),
        "a-1/memory.memsw.limit_in_bytes": str(5 * MIB),
        "a-1/pids.max": "7",
    }
    # The order that the kernel demands.
    files = [path for path, _ in host.writes]
    assert files.index("a-1/memory.limit_in_bytes") < files.index("a-1/memory.memsw.limit_in_bytes")
    with group.join() as join:
        assert join.unified is None
        assert len(join.tasks) == 3
    manager.close()


@pytest.mark.parametrize("has_swap", [True, False])
def test_v1_without_memsw_turns_swapping_down(host: FakeHost, has_swap: bool) -> None:
    host.missing = {"memory.memsw.limit_in_bytes"}
    host.lay(V1, V1_MEMBERSHIP)
    swaps = "Filename Type Size Used Priority\n" + "/dev/sda2 partition 9 0 -2\n" * has_swap
    (host.root / "proc/swaps").write_text(swaps)
    manager = CgroupManager(host.probe())
    assert any("swap is not bounded" in problem for problem in manager.problems) == has_swap
    manager.create("a-1", limits())
    assert dict(host.writes)["a-1/memory.swappiness"] == "0"
    manager.close()


def test_a_cpu_tree_of_its_own_is_left_out_where_nothing_needs_it(host: FakeHost) -> None:
    apart = HYBRID.replace("cpu,cpuacct", "cpu").replace("rw,cpuacct,cpu", "rw,cpu")
    host.lay(apart, V1_MEMBERSHIP.replace("cpuacct,cpu", "cpu") + "0::/\n")
    facts = host.probe()
    assert facts.hierarchy is Hierarchy.HYBRID
    manager = CgroupManager(facts)
    without, bounded = manager.create("a-1", limits()), manager.create("a-2", limits(cpu=1.0))
    trees = [
        {folder.relative_to(host.root / "sys/fs/cgroup").parts[0] for folder in group.folders}
        for group in (without, bounded)
    ]
    assert trees == [{"memory", "pids", "unified"}, {"memory", "pids", "unified", "cpu"}]
    manager.close()


def test_a_controller_that_is_refused_is_reported_and_not_claimed(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_host(host)

    def refuse(path: str, text: str, dir_fd: int) -> None:
        if text == "+cpu":
            raise OSError(errno.EBUSY, "busy")
        host.write(path, text, dir_fd)

    monkeypatch.setattr(cgroup, "_write", refuse)
    manager = CgroupManager(host.probe())
    assert manager.controllers == {"memory", "pids"}
    assert manager.backing(limits(cpu=1.0))["cpu"] is Backing.NONE
    assert any("cpu cannot be enabled" in problem for problem in manager.problems)
    manager.close()


@pytest.mark.parametrize("name", ["", "a/b", "..", "cgroup.procs", "a\n", "x" * 201])
def test_an_attempts_folder_bears_a_plain_name(host: FakeHost, name: str) -> None:
    systemd_host(host)
    manager = CgroupManager(host.probe())
    with pytest.raises(LocalViolation):
        manager.create(name, limits())
    manager.close()


def test_the_room_left_is_that_of_the_tightest_group_above_us(host: FakeHost) -> None:
    systemd_host(host)
    assert own_memory_room(host.root) is None
    slice_ = host.root / "sys/fs/cgroup/user.slice"
    (slice_ / "memory.max").write_text("1000000\n")
    (slice_ / "memory.current").write_text("700000\n")
    (slice_ / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    (slice_ / "user-0.slice/memory.max").write_text("max\n")
    assert own_memory_room(host.root) == 500_000
    (slice_ / "user-0.slice/memory.max").write_text("900000\n")
    (slice_ / "user-0.slice/memory.current").write_text("1000000\n")
    assert own_memory_room(host.root) == 0
    assert own_memory_limit(host.root) == 900_000


def test_the_cpu_quota_is_that_of_the_tightest_group_above_us(host: FakeHost) -> None:
    systemd_host(host)
    assert own_cpu_quota(host.root) is None
    slice_ = host.root / "sys/fs/cgroup/user.slice"
    (slice_ / "cpu.max").write_text("150000 100000\n")
    assert own_cpu_quota(host.root) == 1.5
    (slice_ / "user-0.slice/cpu.max").write_text("max 100000\n")
    assert own_cpu_quota(host.root) == 1.5
    (slice_ / "user-0.slice/cpu.max").write_text("25000 50000\n")
    assert own_cpu_quota(host.root) == 0.5


def test_version_1_says_its_limits_in_its_own_files(host: FakeHost) -> None:
    host.lay(HYBRID, V1_MEMBERSHIP + "0::/\n")
    facts = host.probe()
    folder = {"memory": Path(), "cpu": Path()}
    for branch in facts.branches:
        for controller in folder.keys() & branch.controllers:
            folder[controller] = branch.base
    (folder["memory"] / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder["cpu"] / "cpu.cfs_quota_us").write_text("-1\n")
    (folder["cpu"] / "cpu.cfs_period_us").write_text("100000\n")
    assert (own_memory_limit(host.root), own_cpu_quota(host.root)) == (None, None)
    (folder["memory"] / "memory.limit_in_bytes").write_text("4096\n")
    (folder["cpu"] / "cpu.cfs_quota_us").write_text("250000\n")
    assert (own_memory_limit(host.root), own_cpu_quota(host.root)) == (4096, 2.5)


def test_a_sweep_tells_what_it_removed_and_what_it_could_not(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_host(host)
    (host.root / "proc/sys/kernel/random").mkdir(parents=True)
    (host.root / "proc/sys/kernel/random/boot_id").write_text("0badcafe-1111\n")
    (host.root / "proc/self/ns/pid").touch()
    namespace = (host.root / "proc/self/ns/pid").stat().st_ino
    for pid, state in ((7, b"S"), (8, b"Z")):
        (host.root / f"proc/{pid}").mkdir()
        # A name made to confuse, and a start time of 500.
        stat = b"%d (a) S \xff\n) %s %s 500 1\n" % (pid, state, b" ".join([b"1"] * 18))
        (host.root / f"proc/{pid}/stat").write_bytes(stat)
    facts = host.probe()
    base = facts.branches[0].base
    alive, reused, zombie, gone, busy = (
        base / f"casemate-0badcafe-{namespace}-{tail}"
        for tail in ("7-500-0", "7-499-0", "8-500-0", "9-1-0", "9-1-1")
    )
    for folder in (alive, reused, zombie, gone, busy):
        host.fill(folder, frozenset({"memory"}), unified=True)
        host.fill(folder / "a-1", frozenset({"memory"}), unified=True)
    (busy / "a-1/cgroup.events").write_text("populated 1\n")

    def rmdir(name: str, dir_fd: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        if busy in (folder, folder.parent):
            raise OSError(errno.EBUSY, "busy")
        host.rmdir(name, dir_fd)

    monkeypatch.setattr(cgroup, "_rmdir", rmdir)
    swept = sweep(facts, patience=0, root=host.root)
    assert swept.removed == (reused, zombie, gone)
    assert swept.left == (busy / "a-1", busy)
    assert alive.is_dir()
    assert ("a-1/cgroup.kill", "1") in host.writes


# --- this host ---------------------------------------------------------------------------------


class Manager:
    """This host's facts and, where it lets us, a manager; and processes that join."""

    def __init__(self) -> None:
        self.facts = probe()
        self.manager = CgroupManager(self.facts)
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, group: Cgroup, code: str) -> subprocess.Popen[bytes]:
        """A process that joins as a sandbox's first one does, then runs `code`."""
        with group.join() as join:
            unified = () if join.unified is None else (join.unified,)
            fds = (*join.tasks, *unified)
            head = "import os, sys, time\n"
            head += f"for fd in {join.tasks}: os.write(fd, b'0')\n"
            for fd in unified:  # no clone3 here: the slow way in
                head += f"open('/proc/self/fd/{fd}/cgroup.procs', 'w').write('0')\n"
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", head + code],
                pass_fds=fds,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        assert self.manager.close() == ()


@pytest.fixture
def here() -> Iterator[Manager]:
    manager = Manager()
    try:
        yield manager
    finally:
        manager.close()


def ours(facts: CgroupFacts) -> list[Path]:
    """Every folder of this process that exists now."""
    return [
        folder
        for branch in facts.branches
        for folder in branch.base.glob(f"casemate-*-{os.getpid()}-*")
    ]


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline, "waited 30 s for what never came"
        time.sleep(0.002)


FORK_FOREVER = """
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError as error:
        print(error.errno, flush=True)
        time.sleep(1000)
"""

HUNDRED = """
for _ in range(10):
    if os.fork() == 0:
        os.setsid()
        for _ in range(9):
            if os.fork() == 0:
                break
        time.sleep(1000)
print(flush=True)
time.sleep(1000)
"""


def test_the_facts_of_this_host_are_consistent_and_leave_nothing(here: Manager) -> None:
    facts = probe()
    assert facts.hierarchy is not Hierarchy.NONE or facts.branches == ()
    missing = {"memory", "pids", "cpu"} - facts.controllers
    assert bool(missing) == bool(facts.remedy)
    assert bool(missing) <= bool(facts.problems)
    for branch in facts.branches:
        assert not list(branch.base.glob("casemate-probe-*"))
    if os.geteuid() != 0 and not facts.branches:
        assert set(here.manager.backing(limits()).values()) == {Backing.SAMPLED}


def test_a_group_over_its_memory_limit_is_killed_and_says_so(here: Manager) -> None:
    group = here.manager.create("memory", limits(memory=32 * MIB))
    if "memory" not in here.manager.controllers:
        assert here.manager.backing(limits())["memory"] is Backing.SAMPLED
        assert not group.oom_killed()
        assert group.usage().memory is None
        return
    child = here.start(group, "x = bytearray(96 << 20); time.sleep(1000)")
    if group.oom_fd is not None:  # v1: one process is killed, and we are told at once
        assert select.select([group.oom_fd], [], [], 30)[0]
        assert group.oom_killed()
    assert child.wait(30) == -signal.SIGKILL
    assert group.oom_killed()
    assert not group.pids_hit()
    peak = group.usage().memory_peak
    assert peak is None or 30 * MIB <= peak <= 32 * MIB


def test_memory_spread_over_many_counts_as_one(here: Manager) -> None:
    group = here.manager.create("spread", limits(memory=48 * MIB))
    code = """
for _ in range(10):
    if os.fork() == 0:
        x = bytearray(12 << 20)
        time.sleep(1000)
print(flush=True)
time.sleep(1000)
"""
    here.start(group, code)
    if "memory" in here.manager.controllers:
        wait_until(group.oom_killed)
    else:
        assert not group.oom_killed()
    group.kill()


def test_a_fork_over_the_ceiling_is_refused_and_counted(here: Manager) -> None:
    group = here.manager.create("pids", limits(pids=8))
    if "pids" not in here.manager.controllers:
        assert here.manager.backing(limits())["pids"] is Backing.SAMPLED
        assert (group.pids_hit(), group.usage().pids) == (False, None)
        return
    child = here.start(group, FORK_FOREVER)
    assert child.stdout is not None
    assert int(child.stdout.readline()) == errno.EAGAIN
    assert group.pids_hit()
    assert group.usage().pids == 8
    assert len(group.members()) == 8
    group.kill()
    assert group.wait_empty(30)
    assert group.pids_hit()


def test_killing_a_hundred_descendants_leaves_it_empty(here: Manager) -> None:
    group = here.manager.create("hundred", limits(pids=200))
    if not group.folders:
        assert not here.facts.can_kill
        assert group.members() == []
        return
    child = here.start(group, HUNDRED)
    assert child.stdout is not None
    child.stdout.readline()
    wait_until(lambda: len(group.members()) == 101)
    members = group.members()
    assert not group.is_empty()
    assert not group.wait_empty(0)
    assert group.remove_nowait() == group.folders != ()
    group.kill()
    assert group.wait_empty(30)
    assert group.is_empty()
    assert group.members() == []
    assert not group.pids_hit()
    child.wait()
    assert all(not Path(f"/proc/{pid}").exists() or is_zombie(pid) for pid in members)
    wait_until(lambda: group.remove_nowait() == ())


def is_zombie(pid: int) -> bool:
    """Orphans are reaped by this host's init when it pleases."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_without_cgroup_kill_a_fork_bomb_is_killed_as_well(here: Manager) -> None:
    group = here.manager.create("bomb", limits(pids=100))
    if "pids" not in here.manager.controllers:
        assert here.manager.backing(limits())["pids"] is Backing.SAMPLED
        return
    for parent in group._parents:
        parent.can_kill = False
    child = here.start(group, "print(flush=True)\nwhile True:\n try: os.fork()\n except OSError: 0")
    assert child.stdout is not None
    child.stdout.readline()
    wait_until(group.pids_hit)
    group.kill()
    assert group.wait_empty(30)
    assert group.pids_hit()


def test_our_own_lowered_ceiling_does_not_count_as_a_hit(
    here: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = here.manager.create("lowered", limits(pids=50))
    if "pids" not in here.manager.controllers:
        assert not group.pids_hit()
        return
    [pids] = [parent for parent in group._parents if "pids" in parent.controllers]
    for parent in group._parents:
        parent.can_kill = False
    child = here.start(
        group,
        "print(flush=True)\nwhile True:\n"
        "    try:\n        if os.fork() == 0: os._exit(0)\n        os.wait()\n"
        "    except OSError: pass",
    )
    assert child.stdout is not None
    child.stdout.readline()
    with monkeypatch.context() as patch:  # the ceiling falls, and the killing is late
        patch.setattr(cgroup._Parent, "members", lambda parent, name: [])
        group.kill()
    wait_until(lambda: b"max 0" not in (cgroup._read("lowered/pids.events", pids.fd) or b""))
    assert not group.pids_hit()
    group.kill()
    assert group.wait_empty(30)
    assert not group.pids_hit()


def test_usage_is_that_of_the_whole_group(here: Manager) -> None:
    group = here.manager.create("usage", limits(memory=256 * MIB))
    child = here.start(
        group,
        "x = bytearray(20 << 20)\nos.fork()\nuntil = time.process_time() + 0.2\n"
        "while time.process_time() < until: pass\nprint(flush=True); time.sleep(1000)",
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.readline()
    usage = group.usage()
    controllers = here.manager.controllers
    assert (usage.memory is not None) == ("memory" in controllers)
    assert (usage.pids is not None) == ("pids" in controllers)
    assert usage.memory is None or 20 * MIB <= usage.memory <= 60 * MIB
    assert usage.pids in (2, None)
    assert usage.cpu is None or usage.cpu >= 0.4
    counts = any(b.unified or "cpuacct" in b.controllers for b in here.facts.branches)
    assert (usage.cpu is not None) == counts
    group.kill()


def test_a_cpu_ceiling_is_set(here: Manager) -> None:
    group = here.manager.create("cpu", limits(cpu=0.25))
    if "cpu" not in here.manager.controllers:
        assert here.manager.backing(limits(cpu=0.25))["cpu"] is Backing.NONE
        return
    files = {file.name: file for folder in group.folders for file in folder.iterdir()}
    quota = files.get("cpu.max") or files["cpu.cfs_quota_us"]
    assert quota.read_text().split()[0] == "25000"


def test_closing_kills_what_lives_and_removes_everything(here: Manager) -> None:
    other = CgroupManager(here.facts)
    group = other.create("alive", limits())
    child = here.start(group, "print(flush=True); time.sleep(1000)")
    assert child.stdout is not None
    child.stdout.readline()
    mine = [folder for folder in ours(here.facts) if folder.name == other.name]
    assert len(mine) == len(here.facts.branches)
    assert other.close() == ()
    if group.folders:
        assert child.wait(30) == -signal.SIGKILL
    assert not any(folder.exists() for folder in mine)


def test_what_is_busy_is_collected_later(here: Manager) -> None:
    group = here.manager.create("busy", limits())
    child = here.start(group, "print(flush=True); time.sleep(1000)")
    assert child.stdout is not None
    child.stdout.readline()
    here.manager.discard(group)
    assert here.manager.collect() == group.folders
    group.kill()
    group.wait_empty(30)
    wait_until(lambda: here.manager.collect() == ())
    assert not any((b.base / here.manager.name / "busy").exists() for b in here.facts.branches)


def test_a_dead_engines_leftovers_are_swept_and_a_living_ones_are_not(here: Manager) -> None:
    code = (
        f"import os, sys; sys.path[:] = {sys.path!r}\n"
        "from casemate.sandbox.cgroup import CgroupManager, probe\n"
        "from casemate.protocol.pipeline import Limits\n"
        "manager = CgroupManager(probe())\n"
        "group = manager.create('x', Limits(memory=1 << 26, cpu=None, pids=9, files=9, tmp=9,"
        " disk=9, output=9))\n"
        "join = group.join()\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    for fd in join.tasks: os.write(fd, b'0')\n"
        "    if join.unified is not None:\n"
        "        open(f'/proc/self/fd/{join.unified}/cgroup.procs', 'w').write('0')\n"
        "    os.write(w, b'x')\n"
        "    os.close(1)\n"
        "    import time; time.sleep(60 if group.folders else 0)\n"
        "    os._exit(0)\n"
        "os.read(r, 1)\n"
        "print(manager.name, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(1)\n"  # as if by kill -9: nothing is tidied
    )
    engine = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert engine.stdout is not None
    assert engine.stdin is not None
    name = engine.stdout.readline().strip()
    assert cgroup.FOLDER.fullmatch(name)
    folders = [branch.base / name for branch in here.facts.branches]
    assert all(folder.is_dir() for folder in folders)
    spared = sweep(here.facts)
    assert not set(spared.removed) & set(folders)
    assert all(folder.is_dir() for folder in folders)
    engine.stdin.close()
    engine.stdout.close()
    assert engine.wait(30) == 1
    # Whatever engine starts on this host sweeps: another one may have been faster.
    swept = sweep(here.facts)
    assert not set(swept.left) & set(folders)
    wait_until(lambda: not any(folder.exists() for folder in folders))
    assert all((b.base / here.manager.name).is_dir() for b in here.facts.branches)


def test_only_names_of_this_boot_and_pid_namespace_are_judged(here: Manager) -> None:
    boot, namespace = cgroup._scope(Path("/"))
    us = os.getpid()
    foreign = [
        f"casemate-{boot}-{namespace + 1}-4194304-1-{us}",
        f"casemate-00000000-{namespace}-1-1-{us}",
    ]
    stale = f"casemate-{boot}-{namespace}-{us}-1-0"  # our pid, another start: it is dead
    for branch in here.facts.branches:
        for name in (*foreign, stale):
            (branch.base / name).mkdir()
    try:
        assert not any(folder.name == stale for folder in sweep(here.facts).left)
        wait_until(lambda: not any((b.base / stale).exists() for b in here.facts.branches))
        assert all((b.base / name).is_dir() for b in here.facts.branches for name in foreign)
    finally:
        for branch in here.facts.branches:
            for name in (*foreign, stale):
                with contextlib.suppress(FileNotFoundError):
                    (branch.base / name).rmdir()


def test_when_any_call_of_a_spawn_fails_nothing_of_it_remains(
    here: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = Path("/proc/self/fd")
    before = len(list(fds.iterdir()))
    branches = here.facts.branches
    failed = 0
    for n in range(100):
        left = n

        def failing(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError(errno.EMFILE, "as arranged")
                return real(*args, **named)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "write", "mkdir", "eventfd"):
                patch.setattr(os, name, failing(getattr(os, name)))
            group = None
            try:
                group = here.manager.create("failing", limits(cpu=1.0))
                group.join().close()
            except OSError as error:
                assert error.errno == errno.EMFILE
                failed += 1
                done = False
            else:
                done = True
        if group is not None:  # a spawn that failed later has folders to discard
            here.manager.discard(group)
        assert not any((b.base / here.manager.name / "failing").exists() for b in branches)
        if done:
            break
    assert failed >= 3 * len(branches)
    assert len(list(fds.iterdir())) == before


def test_when_any_call_of_a_managers_start_fails_it_leaves_no_folder(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_host(host)
    facts = host.probe()
    fds = Path("/proc/self/fd")
    before = len(list(fds.iterdir()))
    outcomes = []
    for n in range(100):
        left = n

        def failing(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError(errno.EMFILE, "as arranged")
                return real(*args, **named)

            return call

        manager: CgroupManager | None = None
        with monkeypatch.context() as patch:
            patch.setattr(cgroup, "_mkdir", failing(host.mkdir))
            patch.setattr(cgroup, "_write", failing(host.write))
            patch.setattr(os, "open", failing(os.open))
            patch.setattr(os, "listdir", failing(os.listdir))
            with contextlib.suppress(OSError):
                manager = CgroupManager(facts)
        if manager is not None:
            # What could not be switched on is told, and then not claimed.
            outcomes.append(len(manager.controllers))
            assert bool(manager.problems) == (left < 0)
            manager.close()
        assert not list((host.root / "sys").rglob("casemate*"))
        assert len(list(fds.iterdir())) == before
        if left >= 0:
            break
    assert outcomes[-1] == 3
    assert 2 in outcomes
