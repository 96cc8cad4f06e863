"""What is in force, as the kernel tells it: compared with a posture of reference for each kind of
sandbox (`postures/*.json`; `pytest tests/sandbox --regenerate` writes them anew, and the diff is
read as carefully as code), and with what a program inside finds when it looks itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from casemate.protocol.errors import RemoteViolation
from casemate.protocol.pipeline import Network
from casemate.sandbox import landlock, posture, seccomp, syscalls
from casemate.sandbox.cgroup import Backing, CgroupFacts, Hierarchy
from casemate.sandbox.plan import make_plan
from casemate.sandbox.process import Sandbox, Stdio
from casemate.sandbox.spec import FIRST_RESERVED_ID, Bind, Posture, ProcView, Ready
from casemate.sandbox.zygote import package_folders
from sealed import FASHIONS, LIMITS, PATIENCE, House, SealedGuest, python, this_host

POSTURES = Path(__file__).parent / "postures"
HOSTS = "the host's"
GIVEN = ("/data/", "/sources", "/workspace")


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(request.param) as made:
        yield made


# --- the reference ------------------------------------------------------------------------------

# Limits that no plan sets are the host's.
OURS = {
    "core", "memlock", "stack", "sigpending", "msgqueue", "rtprio", "nice", "nofile", "fsize",
    "data",
}  # fmt: skip


def is_shown(path: str) -> bool:
    """The system and the interpreter: where they lie, and in how many mounts, is the host's."""
    folders = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
    shown = (*folders, *this_host().prefixes, *package_folders())
    return any(path == folder or path.startswith(folder + "/") for folder in shown)


def normal(told: dict[str, Any], *, is_counted: bool) -> dict[str, Any]:
    """Without what is this host's or this moment's; what must hold of that is asserted here.
    `is_counted`: a cgroup counts the memory."""
    found: dict[str, Any] = json.loads(msgspec.json.encode(told))
    for name in ("uid_map", "gid_map"):
        inside, outside, count = found[name].split()
        if int(outside) >= FIRST_RESERVED_ID:
            outside = "reserved"
        found[name] = f"{inside} {outside if outside == 'reserved' else HOSTS} {count}"
    if found["groups"]:
        # As they show through a map that has none of them; an ordinary user cannot leave them.
        assert set(found["groups"]) <= {1000, 65534}
        found["groups"] = []
    found["filters"] -= own_filters()
    # Who may write to the host's folders can make no setuid files there.
    modes = not any(text.startswith("disk rw") or (" rw," in text and path.startswith(GIVEN))
                    for path, text in found["mounts"].items())  # fmt: skip
    program = seccomp.build(syscalls.ARCH, special_modes=modes, unowned_memory=is_counted)
    assert found.pop("filter") == program.signature
    rights = landlock.rights(min(this_host().landlock_abi, landlock.ABI))
    assert found["landlock"].pop("abi") == min(this_host().landlock_abi, landlock.ABI)
    assert found["landlock"].pop("fs") == rights.fs
    assert found["landlock"].pop("scopes") == rights.scopes
    numbers = found["namespaces"]
    own = [name for name in numbers if name not in found["shared"]]
    assert all(numbers[name] != os.stat(f"/proc/self/ns/{name}").st_ino for name in own)
    found["namespaces"] = own
    found["cgroup"] = {}  # see test_it_is_in_the_cgroups_that_were_made_for_it
    found["limits"] = {}
    found["rlimits"] = {name: limit for name, limit in found["rlimits"].items() if name in OURS}
    mounts = {}
    for path, text in found["mounts"].items():
        kind, options = text.split(" ")
        if is_shown(path):
            assert set(options.split(",")) == {"ro", "nosuid", "nodev"}, path
            path, kind = "the system and the interpreter", "disk"
        elif path.startswith("/dev/") and path != "/dev/shm":
            kind, options = "device", options.partition(",size")[0]
        elif path.startswith(GIVEN):
            kind, options = "disk", options.partition(",size")[0]
        mounts[path] = f"{kind} {options}"
    found["mounts"] = mounts
    return found


def own_filters() -> int:
    """Those that the tests themselves run behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Seccomp_filters:"):
            return int(line.split()[1])
    raise LookupError("a kernel that does not count filters")


def told_of(house: House, **fields: Any) -> dict[str, Any]:
    sandbox = house.spawn("/bin/sleep", "1000", **fields)
    assert isinstance(sandbox.wait_record(PATIENCE), Ready), sandbox.failed
    told = sandbox.posture()
    house.bury(sandbox)
    return told


def told_of_guest(house: House, **fields: Any) -> dict[str, Any]:
    with SealedGuest(house, **fields) as guest:
        assert isinstance(guest.sandbox.wait_record(PATIENCE), Ready), guest.sandbox.failed
        told = guest.sandbox.posture()
    (link,) = (fd for fd, what in told["fds"].items() if what == "link")
    told["fds"]["link"] = told["fds"].pop(link)
    return told


def sampled(house: House) -> Any:
    """A plan as on a host without cgroups."""
    spec = house.spec(argv=("/bin/sleep", "1000"))
    backing = {"memory": Backing.SAMPLED, "pids": Backing.SAMPLED}
    return make_plan(spec, house.probe, {}, backing)


CASES = ("command", "guest", "everything given", "host network", "more of proc", "sampled limits")


def posture_of(house: House, case: str, folder: Path) -> dict[str, Any]:
    if case == "guest":
        return told_of_guest(house, env={"CASEMATE_RUN": "r1"})
    if case == "everything given":
        given = str(folder)
        binds = (Bind(given, "/data/read"), Bind(given, "/data/written", writable=True))
        return told_of(
            house, workspace=given, sources=given, binds=binds, env={"SECRET_NAME": "value"}
        )
    if case == "host network":
        return told_of(house, network=Network.HOST)
    if case == "more of proc":
        return told_of(house, proc=ProcView.READONLY)
    if case == "sampled limits":
        return told_of(house, plan=sampled(house))
    return told_of(house)


@pytest.mark.parametrize("case", CASES)
def test_the_posture_is_the_one_of_reference(
    house: House, case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    fashion = "root" if house.probe.privileged else "user"
    file = POSTURES / f"{case.replace(' ', '-')}.{fashion}.json"
    is_counted = case != "sampled limits" and "memory" in house.probe.cgroup.controllers
    found = normal(posture_of(house, case, tmp_path), is_counted=is_counted)
    found["rlimits"] = {
        name: limit
        for name, limit in found["rlimits"].items()
        if name != "data" or case == "sampled limits"
    }
    found["mounts"].pop("/etc/resolv.conf", None)  # some hosts have none
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if request.config.getoption("--regenerate", default=False):
        file.write_text(text)
    assert json.loads(text) == json.loads(file.read_text())


# --- and it is true -----------------------------------------------------------------------------

LOOK = """
import json, os, resource
def read(name):
    return open('/proc/self/' + name).read()
names = ('cgroup', 'ipc', 'mnt', 'net', 'pid', 'time', 'user', 'uts')
print(json.dumps({
    'namespaces': {name: os.stat('/proc/self/ns/' + name).st_ino for name in names},
    'uid_map': read('uid_map').split(),
    'mounts': sorted(line.split()[1] for line in read('mounts').splitlines()),
    'nofile': resource.getrlimit(resource.RLIMIT_NOFILE),
    'stack': resource.getrlimit(resource.RLIMIT_STACK),
    'env': sorted(set(os.environ) - {'LC_CTYPE'}),
}), flush=True)
import time; time.sleep(1000)
"""


def test_it_says_what_a_program_inside_finds(house: House) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn(*python(LOOK), stdio=Stdio(null, writer, null), env={"ANSWER": "42"})
    os.close(writer)
    os.close(null)
    with os.fdopen(reader) as lines:
        found = json.loads(lines.readline())
    assert isinstance(sandbox.wait_record(PATIENCE), Ready)
    told = sandbox.posture()
    house.bury(sandbox)
    assert told["namespaces"] == found["namespaces"]
    assert told["uid_map"].split() == found["uid_map"]
    assert sorted(told["mounts"]) == found["mounts"]
    assert list(told["rlimits"]["nofile"]) == found["nofile"]
    assert list(told["rlimits"]["stack"]) == found["stack"]
    assert told["env"] == found["env"]


# By whichever version's files: 256 MiB, no swap, all of a tree at once, 64 processes, half a core.
SAID = {
    "memory.max": "268435456", "memory.swap.max": "0", "memory.oom.group": "1",
    "memory.limit_in_bytes": "268435456", "memory.memsw.limit_in_bytes": "268435456",
    "pids.max": "64",
    "cpu.max": "50000 100000", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000",
}  # fmt: skip


def test_it_is_in_the_cgroups_that_were_made_for_it(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000", limits=msgspec.structs.replace(LIMITS, cpu=0.5))
    assert isinstance(sandbox.wait_record(PATIENCE), Ready)
    told = sandbox.posture()
    assert sandbox.cgroup is not None
    folders = [str(folder) for folder in sandbox.cgroup.folders]
    house.bury(sandbox)
    if not folders:  # an ordinary user without delegation has none, and it is said that none hold
        assert told["limits"] == {}
        assert set(sandbox.plan.walls["limits"].values()) == {"sampled"}
        return
    joined = {place for place in told["cgroup"].values() if place.endswith(folders[0][-20:])}
    assert len(joined) >= 1
    for folder in folders:
        assert any(folder.endswith(place) for place in joined), (folder, joined)
    assert told["limits"] == {file: SAID[file] for file in told["limits"]}
    for controller in house.probe.cgroup.controllers & {"memory", "pids", "cpu"}:
        assert any(file.startswith(f"{controller}.") for file in told["limits"]), controller


def test_without_cgroups_it_says_so() -> None:
    none = CgroupFacts(Hierarchy.NONE, (), ("none here",), "")
    with House(cgroup=none) as house:
        assert told_of(house)["limits"] == {}


@pytest.mark.parametrize("version", range(1, landlock.ABI + 1))
def test_an_old_abi_is_used_as_far_as_it_goes(house: House, version: int) -> None:
    """As on an older kernel; what that cannot refuse is said among the walls."""
    assert this_host().landlock_abi >= landlock.ABI, "the tests of Landlock need all of it"
    probe = msgspec.structs.replace(house.probe, landlock_abi=version)
    plan = make_plan(house.spec(argv=("/bin/sleep", "1000")), probe, {}, {})
    rights = landlock.rights(version)
    told = told_of(house, plan=plan)["landlock"]
    assert told == {
        "abi": version,
        "fs": rights.fs,
        "tcp": 0,
        "scopes": rights.scopes,
        "refused": True,
    }
    assert ("without" in plan.walls["landlock"]) == (version < 6)


def test_it_can_be_sent_as_data(house: House) -> None:
    told = told_of(house)
    assert json.loads(msgspec.json.encode(told))["uid"] == [1000, 1000, 1000]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told))["seccomp"] == 2


# --- walls that do not stand --------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(house: House) -> tuple[Sandbox, Posture]:
    sandbox = house.spawn("/bin/sleep", "1000")
    ready = sandbox.wait_record(PATIENCE)
    assert isinstance(ready, Ready)
    return sandbox, ready.posture


def changed(found: Posture, old: bytes, new: bytes) -> Posture:
    assert old in found.status
    return msgspec.structs.replace(found, status=found.status.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b"Uid:\t1000\t1000\t1000\t1000", b"Uid:\t1000\t0\t1000\t1000", "uid"),
        (b"Gid:\t1000\t1000\t1000\t1000", b"Gid:\t1000\t1000\t1000\t0", "uid and gid"),
        (b"CapInh:\t0000000000000000", b"CapInh:\t0000000000000001", "capabilities"),
        (b"CapPrm:\t0000000000000000", b"CapPrm:\t0000000000200000", "capabilities"),
        (b"CapEff:\t0000000000000000", b"CapEff:\t000001ffffffffff", "capabilities"),
        (b"CapBnd:\t0000000000000000", b"CapBnd:\t000001ffffffffff", "capabilities"),
        (b"CapAmb:\t0000000000000000", b"CapAmb:\t0000000000000400", "capabilities"),
        (b"NoNewPrivs:\t1", b"NoNewPrivs:\t0", "no_new_privs"),
    ],
)
def test_a_status_that_is_not_the_plans_is_a_missing_wall(
    real: tuple[Sandbox, Posture], old: bytes, new: bytes, word: str
) -> None:
    sandbox, found = real
    signature, outer = found.filter, posture.namespaces()
    assert posture.missing(sandbox.plan, found, signature=signature, outer=outer) == ""
    broken = changed(found, old, new)
    assert word in posture.missing(sandbox.plan, broken, signature=signature, outer=outer)


def test_a_namespace_a_filter_and_a_ruleset_that_are_not_ours_are_missing_walls(
    real: tuple[Sandbox, Posture],
) -> None:
    sandbox, found = real
    signature, outer = found.filter, posture.namespaces()

    def said(found: Posture, outer: list[str] = outer, signature: str = signature) -> str:
        return posture.missing(sandbox.plan, found, signature=signature, outer=outer)

    for index, name in enumerate(posture.NAMESPACES):
        shared = list(outer)
        shared[index] = found.namespaces[index]
        expected = "" if name == "time" else f"the {name} namespace is not its own; "
        assert said(found, shared) == expected
    assert "the filter" in said(found, signature="000000")
    assert "Landlock" in said(msgspec.structs.replace(found, refused=False))
    assert "dumped" in said(msgspec.structs.replace(found, dumpable=1))


def test_limits_and_descriptors_are_compared_with_the_plan(real: tuple[Sandbox, Posture]) -> None:
    sandbox, found = real
    told = posture.told(sandbox.plan, found)
    assert posture.unlike(sandbox.plan, told) == ""
    loose = {**told, "rlimits": {**told["rlimits"], "nofile": (1 << 20, 1 << 20)}}
    assert "nofile" in posture.unlike(sandbox.plan, loose)
    unlimited = {**told, "rlimits": {**told["rlimits"], "core": (-1, -1)}}
    assert "core" in posture.unlike(sandbox.plan, unlimited)
    more = msgspec.structs.replace(found, fds=[*found.fds, "77"])
    assert "77" in posture.unlike(sandbox.plan, posture.told(sandbox.plan, more))


@pytest.mark.parametrize("field", ["status", "uid_map", "rlimits", "mounts", "cgroup", "landlock"])
def test_texts_that_are_none_of_the_kernels_are_the_insides_fault(
    real: tuple[Sandbox, Posture], field: str
) -> None:
    sandbox, found = real
    for text in (b"\xff\xfe", b"a b c d e f g\n" * 9, b"Uid:\tx\n"):
        nonsense = msgspec.structs.replace(found, **{field: text})
        try:
            told = sandbox._told(Ready(posture=nonsense))
        except RemoteViolation:
            continue
        json.dumps(told)  # what is told all the same is plain data
