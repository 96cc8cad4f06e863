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
from casemate.sandbox.overlay import OPTIONS
from casemate.sandbox.plan import MOST_LAYERS, ORDER, PathFact, make_plan, paths_of
from casemate.sandbox.probe import Fact, Probe
from casemate.sandbox.spec import (
    DEGRADABLE,
    FIRST_RESERVED_ID,
    SLOTS,
    Bind,
    LayerSpec,
    Mode,
    Plan,
    PlannedBind,
    PlannedLayer,
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


def host(
    *missing: str,
    privileged: bool = True,
    landlock_abi: int = 7,
    kernel: tuple[int, int] = (6, 18),
) -> Probe:
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
        kernel=kernel,
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


# --- layers -------------------------------------------------------------------------------------


def layer(**fields: Any) -> LayerSpec:
    given = {"base": "/base", "folder": "/runs/r/layers", "lower": ("b.1", "a.2"), "upper": "c.1"}
    return LayerSpec(**{**given, **fields})


def there(asked: LayerSpec) -> dict[str, PathFact]:
    """Layers of uid 77 over a base of uid 501, in folders that are root's and open to all."""
    facts = {path: PathFact(True, owner=(77, 78), is_open=True) for path in paths_of(asked)}
    facts[asked.folder] = facts[f"{asked.folder}/{asked.upper}"] = PathFact(True, is_open=True)
    facts[asked.base] = PathFact(True, owner=(501, 20))
    return facts


def test_under_root_layers_and_base_are_mapped_from_their_owners() -> None:
    asked = layer()
    made = plan(spec(layer=asked), paths=there(asked))
    assert made.layer == PlannedLayer(
        base="/base",
        folder="/runs/r/layers",
        lower=("b.1", "a.2"),
        upper="c.1",
        base_owner=(501, 20),
        owner=(77, 78),
    )
    assert made.binds == ()
    assert made.walls["workspace"] == "overlay, 2 layers over a read-only base"
    ordinary = plan(spec(layer=asked), host(privileged=False), there(asked))
    assert ordinary.layer is not None
    assert (ordinary.layer.base_owner, ordinary.layer.owner) == (None, None)


def test_a_task_with_a_layer_starts_in_it() -> None:
    asked = layer()
    assert plan(spec(layer=asked), paths=there(asked)).cwd == "/workspace"
    assert plan(spec(layer=asked, cwd="/tmp"), paths=there(asked)).cwd == "/tmp"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", ".hidden", "a:b", "a,b", "a\\b", "a b", "a\0", "a\n", "é",
     "x" * 201],
)  # fmt: skip
def test_a_layers_name_is_one_plain_word(name: str) -> None:
    for asked in (layer(upper=name), layer(lower=("a.1", name))):
        with pytest.raises(UsageError, match="layer"):
            plan(spec(layer=asked), paths=there(asked))


def test_names_that_the_supervisor_gives_are_plain_words() -> None:
    asked = layer(upper="x" * 64 + ".1234567890", lower=("-a_.1", "flat-0123456789abcdef", "1.1"))
    plan(spec(layer=asked), paths=there(asked))


@pytest.mark.parametrize(
    ("asked", "fields", "words"),
    [
        (layer(), {"workspace": "/base"}, "one of them"),
        (layer(), {"binds": (Bind("/base", "/workspace"),)}, "cover"),
        (layer(base="base"), {}, "absolute"),
        (layer(folder="layers"), {}, "absolute"),
        (layer(lower=("c.1",)), {}, "only once"),
        (layer(lower=("a.1", "a.1")), {}, "only once"),
        (layer(lower=tuple(f"a.{n}" for n in range(MOST_LAYERS + 1))), {}, "at most"),
    ],
)  # fmt: skip
def test_layers_that_make_no_sense_are_the_callers_mistake(
    asked: LayerSpec, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan(spec(layer=asked, **fields), paths={**there(asked), "/base": PathFact(True)})


def test_the_most_layers_fit_the_one_page_that_mount_reads() -> None:
    stack = ":".join((*map(str, range(MOST_LAYERS)), "b"))
    assert len(f"lowerdir={stack},{OPTIONS}") <= 4095


@pytest.mark.parametrize("path", paths_of(layer()))
def test_each_path_of_a_layer_must_be_a_folder(path: str) -> None:
    for fact in (PathFact(False), PathFact(True, is_file=True)):
        with pytest.raises(SetupRefused, match=f"{path} .*not a folder"):
            plan(spec(layer=layer()), paths={**there(layer()), path: fact})


def test_a_base_around_its_layers_is_refused() -> None:
    for base in ("/runs", "/runs/r/layers", "/"):
        asked = layer(base=base)
        with pytest.raises(SetupRefused, match="inside the base"):
            plan(spec(layer=asked), paths=there(asked))


@pytest.mark.parametrize("owner", [(0, 0), (0, 77), (77, 0)])
def test_under_root_a_layer_is_nobodys(owner: tuple[int, int]) -> None:
    paths = {**there(layer()), "/runs/r/layers/c.1/upper": PathFact(True, owner=owner)}
    with pytest.raises(SetupRefused, match="belongs to root"):
        plan(spec(layer=layer()), paths=paths)
    assert plan(spec(layer=layer()), host(privileged=False), paths).layer is not None


@pytest.mark.parametrize("path", ["/runs/r/layers", "/runs/r/layers/c.1"])
def test_under_root_the_layers_owner_must_get_there(path: str) -> None:
    closed = {**there(layer()), path: PathFact(True)}
    with pytest.raises(SetupRefused, match=f"{path}: uid 77"):
        plan(spec(layer=layer()), paths=closed)
    assert plan(spec(layer=layer()), host(privileged=False), closed).layer is not None
    own = {**closed, path: PathFact(True, owner=(77, 78))}
    assert plan(spec(layer=layer()), paths=own).layer is not None


def test_mapped_layers_need_a_kernel_that_looks_through_them() -> None:
    with pytest.raises(SetupRefused, match=r"Linux 5\.19"):
        plan(spec(layer=layer()), host(kernel=(5, 18)), there(layer()))
    old = host(kernel=(5, 13), privileged=False)
    assert plan(spec(layer=layer()), old, there(layer())).layer is not None
