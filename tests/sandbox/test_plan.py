"""Plans are pure: hosts are pretended, refusals name the wall and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from casemate.protocol.errors import SetupRefused, UsageError
from casemate.protocol.limits import MIB
from casemate.protocol.pipeline import Limits, Network
from casemate.sandbox import syscalls
from casemate.sandbox.cgroup import Backing, CgroupFacts, Hierarchy
from casemate.sandbox.init import STEPS
from casemate.sandbox.plan import ORDER, PathFact, make_plan
from casemate.sandbox.probe import Fact, Probe
from casemate.sandbox.spec import (
    DEGRADABLE,
    FIRST_RESERVED_ID,
    SLOTS,
    Bind,
    Mode,
    Plan,
    PlannedBind,
    ProcView,
    SandboxSpec,
)
from msgspec import msgpack

LIMITS = Limits(
    memory=256 * MIB, cpu=1.0, pids=64, files=256, tmp=16 * MIB, disk=64 * MIB, output=MIB
)
WALLS = ("kernel", "python", "user", "pid", "mount", "net", "ipc", "uts", "cgroup", "proc",
         "seccomp", "landlock")  # fmt: skip
HELD = dict.fromkeys(("memory", "pids", "cpu"), Backing.CGROUP)


def host(*missing: str, privileged: bool = True, landlock_abi: int = 7) -> Probe:
    facts = {
        name: Fact(
            name=name,
            present=name not in missing,
            detail=f"no {name} here" if name in missing else "there",
            remedy=f"Mend {name}.",
        )
        for name in WALLS
    }
    return Probe(
        facts=facts,
        privileged=privileged,
        landlock_abi=landlock_abi,
        kernel=(6, 18),
        prefix="/opt/python",
        prefixes=("/opt/python",),
        cgroup=CgroupFacts(Hierarchy.V2, (), ("not delegated",), "Delegate it."),
    )


def spec(**fields: Any) -> SandboxSpec:
    fields.setdefault("mode", Mode.EXEC)
    fields.setdefault("argv", ("true",))
    return SandboxSpec(limits=LIMITS, **fields)


def plan(
    asked: SandboxSpec | None = None,
    given: Probe | None = None,
    paths: dict[str, PathFact] | None = None,
    backing: dict[str, Backing] | None = None,
) -> Plan:
    return make_plan(asked or spec(), given or host(), paths or {}, backing or HELD)


def test_every_step_has_a_way_to_be_done_and_the_order_is_one() -> None:
    assert tuple(STEPS) == ORDER


def test_the_same_question_has_the_same_answer() -> None:
    assert msgpack.encode(plan()) == msgpack.encode(plan())


def test_root_takes_every_step_in_order() -> None:
    assert plan().steps == ORDER


def test_an_ordinary_user_has_no_other_identity_to_take() -> None:
    made = plan(given=host(privileged=False))
    assert made.steps == tuple(step for step in ORDER if step != "identity")
    assert made.host_id is None


@pytest.mark.parametrize("privileged", [True, False])
def test_what_cannot_be_undone_comes_after_what_needs_it(privileged: bool) -> None:
    steps = plan(given=host(privileged=privileged)).steps
    before_after = [
        ("cgroups", "root"),  # its cgroup becomes the root of what it sees
        ("binds", "root"),  # the host's files are out of view afterwards
        ("proc", "root"),
        ("mounts", "user"),  # no power over mounts in the last user namespace
        ("hostname", "user"),
        ("loopback", "user"),
        ("user", "no_new_privs"),
        ("rlimits", "capabilities"),
        ("no_new_privs", "landlock"),
        ("mounts", "landlock"),
        ("capabilities", "landlock"),
        ("descriptors", "seccomp"),
    ]
    for first, second in before_after:
        assert steps.index(first) < steps.index(second), (first, second)
    assert steps[-1] == "seccomp"


def test_every_namespace_is_asked_for_at_the_right_moment() -> None:
    made = plan()
    assert made.clone_flags == (
        syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNET
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWUTS
    )
    assert made.unshare_flags == syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP


@pytest.mark.parametrize("wall", ["kernel", "python", "pid", "mount", "proc"])
def test_what_nothing_is_without_cannot_be_given_up(wall: str) -> None:
    with pytest.raises(SetupRefused, match=f"no {wall} here.*Mend {wall}"):
        plan(given=host(wall))
    with pytest.raises(UsageError, match=wall):
        plan(spec(degrade=(wall,)), host(wall))


@pytest.mark.parametrize("wall", sorted(DEGRADABLE))
def test_a_missing_wall_is_refused_with_remedy_unless_named(wall: str) -> None:
    with pytest.raises(SetupRefused, match=rf"no {wall} here.*Mend {wall}.*degrade: \[{wall}\]"):
        plan(given=host(wall))
    others = tuple(sorted(DEGRADABLE - {wall}))
    with pytest.raises(SetupRefused, match=wall):
        plan(spec(degrade=others), host(wall))
    made = plan(spec(degrade=(wall,)), host(wall))
    assert made.walls["degraded"] == [wall]
    assert made.walls != plan().walls


@pytest.mark.parametrize("wall", sorted(DEGRADABLE))
def test_a_wall_that_can_be_had_is_built_even_if_it_may_be_given_up(wall: str) -> None:
    assert plan(spec(degrade=(wall,))) == plan()


def test_without_root_the_user_namespace_is_not_to_be_given_up() -> None:
    with pytest.raises(SetupRefused, match="user"):
        plan(spec(degrade=("user",)), host("user", privileged=False))


def test_no_missing_wall_goes_unsaid() -> None:
    made = plan(spec(degrade=tuple(DEGRADABLE)), host(*DEGRADABLE, landlock_abi=0))
    assert made.walls["degraded"] == sorted(DEGRADABLE)
    for wall in DEGRADABLE - {"user"}:
        assert made.walls[wall] == "missing"
    assert made.walls["user"] == f"reserved uid {FIRST_RESERVED_ID}"
    assert not {"user", "hostname", "loopback", "landlock", "seccomp"} & set(made.steps)
    assert made.clone_flags == syscalls.CLONE_NEWPID
    assert made.unshare_flags == syscalls.CLONE_NEWNS


def test_landlock_stands_in_for_a_missing_network_namespace() -> None:
    asked = spec(degrade=("net",))
    assert plan(asked, host("net")).landlock_network
    assert plan(asked, host("net")).walls["net"] == "shared, TCP refused by Landlock"
    old = plan(asked, host("net", landlock_abi=3))
    assert not old.landlock_network
    assert old.walls["net"] == "missing"


def test_inside_a_network_namespace_loopback_stays_usable() -> None:
    assert not plan().landlock_network
    assert "loopback" in plan().steps


def test_the_hosts_network_comes_with_its_resolver_and_nothing_else() -> None:
    asked = spec(network=Network.HOST)
    made = plan(asked, paths={"/etc/resolv.conf": PathFact(True, is_file=True)})
    assert not made.clone_flags & syscalls.CLONE_NEWNET
    assert made.walls["net"] == "host"
    assert made.walls["degraded"] == []
    assert [bind.inside for bind in made.binds] == ["/etc/resolv.conf"]
    without = plan(asked, paths={"/etc/resolv.conf": PathFact(False)})
    assert without.binds == ()


def test_limits_without_a_cgroup_are_sampled_and_said_to_be() -> None:
    sampled = {"memory": Backing.SAMPLED, "pids": Backing.SAMPLED, "cpu": Backing.NONE}
    made = plan(backing=sampled)
    assert made.walls["limits"] == {"cpu": "none", "memory": "sampled", "pids": "sampled"}
    assert len(made.rlimits) == len(plan().rlimits) + 2
    with pytest.raises(SetupRefused, match=r"strict.*memory.*not delegated.*Delegate it"):
        plan(spec(strict=("cgroup",)), backing=sampled)
    assert plan(spec(strict=("cgroup",))).walls["limits"]["memory"] == "cgroup"


def test_each_slot_is_a_uid() -> None:
    assert plan(spec(slot=0)).host_id == FIRST_RESERVED_ID
    assert plan(spec(slot=SLOTS - 1)).host_id == FIRST_RESERVED_ID + SLOTS - 1
    for slot in (-1, SLOTS):
        with pytest.raises(UsageError, match="slot"):
            plan(spec(slot=slot))


def test_reserved_uids_stay_below_what_systemd_leaves_free() -> None:
    assert FIRST_RESERVED_ID >= 1_879_048_192
    assert FIRST_RESERVED_ID + SLOTS <= 2_147_483_646


WORK = {"/home/me/work": PathFact(True, owner=(501, 20)), "/in": PathFact(True, is_file=True)}


def test_under_root_what_is_bound_looks_like_the_tasks_own() -> None:
    asked = spec(workspace="/home/me/work", input_file="/in")
    assert plan(asked, paths=WORK).binds == (
        PlannedBind(host="/home/me/work", inside="/workspace", writable=False, owner=(501, 20)),
        PlannedBind(
            host="/in", inside="/casemate/input", writable=False, host_is_file=True, owner=(0, 0)
        ),
    )
    ordinary = plan(asked, host(privileged=False), WORK)
    assert [bind.owner for bind in ordinary.binds] == [None, None]


def test_a_public_file_needs_no_owner_and_a_writable_one_does() -> None:
    paths = {"/in": PathFact(True, is_file=True, owner=(5, 5), is_public=True)}
    read = plan(spec(binds=(Bind("/in", "/data/in"),)), paths=paths)
    assert [bind.owner for bind in read.binds] == [None]
    written = plan(spec(binds=(Bind("/in", "/data/in", writable=True),)), paths=paths)
    assert [bind.owner for bind in written.binds] == [(5, 5)]


def test_the_task_starts_in_its_workspace_or_in_tmp() -> None:
    assert plan(spec(workspace="/home/me/work"), paths=WORK).cwd == "/workspace"
    assert plan().cwd == "/tmp"
    assert plan(spec(cwd="/usr")).cwd == "/usr"


def test_a_path_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(SetupRefused, match=r"/gone.*/workspace"):
        plan(spec(workspace="/gone"), paths={"/gone": PathFact(False)})


@pytest.mark.parametrize(
    "inside",
    ["/", "relative", "/a/../b", "/a//b", "/a/", "/proc", "/proc/x", "/dev", "/dev/null",
     "/casemate", "/casemate/out"],
)  # fmt: skip
def test_a_bind_cannot_cover_the_machinery(inside: str) -> None:
    with pytest.raises(UsageError, match="bind"):
        plan(spec(binds=(Bind("/in", inside),)), paths=WORK)


def test_the_environment_of_the_task_wins_over_the_base() -> None:
    env = plan(spec(env={"PATH": "/mine", "X": "y"})).env
    assert (env["PATH"], env["X"], env["HOME"]) == ("/mine", "y", "/tmp")
    assert plan().env["PATH"].startswith("/opt/python/bin:")


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ()},
        {"argv": ("true", "a\0b")},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "b\0"}},
        {"cwd": "/\0"},
        {"hostname": ""},
        {"hostname": "x" * 65},
        {"degrade": ("everything",)},
        {"strict": ("landlock",)},
    ],
)
def test_nonsense_is_the_callers_mistake(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(spec(**fields))


def test_more_of_proc_is_said_to_be_more() -> None:
    made = plan(spec(proc=ProcView.READONLY))
    assert made.walls["proc"] == "own, hidepid, read-only"
    assert made.proc is ProcView.READONLY


def test_small_tmp_has_inodes_all_the_same() -> None:
    assert plan().tmp_inodes == 16 * MIB // 4096
    small = SandboxSpec(
        mode=Mode.EXEC,
        argv=("true",),
        limits=Limits(memory=1, cpu=None, pids=1, files=1, tmp=4096, disk=1, output=1),
    )
    assert plan(small).tmp_inodes == 1024
