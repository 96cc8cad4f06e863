"""Which attacks does each wall stop that no other does? One wall off at a time, all attacks that
name it.

The product has no switch for this, and shall have none: a wall is taken out of a *copy* of the
installed package, by lines appended to one of its files, and the attack suite runs by that copy.
What gets through then, and did not with every wall standing, is what this wall alone was stopping;
what is only refused in another way is stopped by the next wall, and is told apart. A wall that
stops nothing alone has its reason here.

With a wall off attacks succeed, so this refuses to run anywhere but in a guest of ours: on a
machine that says it is virtual and bears the image's marker.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["WALLS", "Wall", "refusal"]

MARKER = Path("/etc/casemate-test-vm")
CPUINFO = Path("/proc/cpuinfo")

# The suite takes a minute on an idle host; a wall that is off may make attacks wait for a timeout.
SUITE_PATIENCE = 1800.0

ATTACK = """
import sys, msgspec
from casemate.hostile import attack, runner
runner.run_outside = lambda attacks, target: {}  # nothing of it depends on a wall
ours = set(sys.argv[2:])
findings = runner.run_suite([each for each in attack.every_attack() if ours & set(each.walls)])
with open(sys.argv[1], "wb") as file:
    file.write(msgspec.json.encode(findings))
"""

# A copy's plan without some steps, flags or limits. `make_plan` is looked up when it is called.
PLAN = """

import msgspec as _msgspec
_whole_plan = make_plan

def make_plan(*given, **named):
    plan = _whole_plan(*given, **named)
    return _msgspec.structs.replace(
        plan,
        steps=tuple(step for step in plan.steps if step not in {steps!r}),
        clone_flags=plan.clone_flags & ~{flags},
        unshare_flags=plan.unshare_flags & ~{flags},
    )
"""

# What is read back then counts as what was planned, or no sandbox of the copy would start.
INIT = """

assert posture.missing
posture.missing = lambda *given, **named: ""
"""

SKIP = "STEPS[{step!r}] = lambda build: None\n"

# A step without one of the calls it makes.
WITHOUT = """
def _without(build, step=STEPS[{step!r}], call={owner}.{name}):
    {owner}.{name} = lambda *given: None
    try:
        step(build)
    finally:
        {owner}.{name} = call

STEPS[{step!r}] = _without
"""


@dataclass(frozen=True, slots=True)
class Wall:
    """`called`: by the attacks that it may stop. `lines`: {file of the package: what is appended}.
    `reason`: why it stays even if the suite has no attack that it stops alone."""

    name: str
    called: str
    lines: dict[str, str]
    reason: str = ""


def without_steps(name: str, called: str, *steps: str, flags: int = 0, reason: str = "") -> Wall:
    lines = {
        "sandbox/plan.py": PLAN.replace("{steps!r}", repr(set(steps))).replace(
            "{flags}", str(flags)
        ),
        "sandbox/init.py": INIT,
    }
    return Wall(name, called, lines, reason)


def with_init(name: str, called: str, lines: str, reason: str = "") -> Wall:
    return Wall(name, called, {"sandbox/init.py": INIT + lines}, reason)


def without_limits(name: str, prefix: str, reason: str = "") -> Wall:
    lines = f"""

_all_settings = _Parent._settings
_Parent._settings = lambda parent, limits: (
    each for each in _all_settings(parent, limits) if not each[0].startswith({prefix!r})
)
if {prefix!r} == "cpu":
    _Parent._limit_cpu = lambda parent, name, cores: None
"""
    return Wall(name, "limits", {"sandbox/cgroup.py": lines}, reason)


_NEW = {"ipc": 0x08000000, "uts": 0x04000000, "pid": 0x20000000, "net": 0x40000000,
        "cgroup": 0x02000000}  # fmt: skip

WALLS = (
    without_steps(
        "user namespace",
        "user",
        "user",
        reason="a capability that a kernel bug gives counts for nothing outside it",
    ),
    with_init(
        "reserved uid",
        "user",
        # The ids of root, mapped to the task's: what an ordinary user's supervisor has instead.
        SKIP.format(step="identity"),
    ),
    without_steps("pid namespace", "pid", flags=_NEW["pid"]),
    with_init(
        "private root",
        "mount",
        # The host's tree stays in view, in a mount namespace of the sandbox's own.
        "def _stay(build):\n    syscalls.unshare(build.plan.unshare_flags)\n"
        "STEPS['root'] = _stay\n",
    ),
    Wall(
        "read-only root",
        "mount",
        {
            "sandbox/mounts.py": "\n\n_clone_tree = clone_tree\n"
            "def clone_tree(path, *, writable, **named):\n"
            "    return _clone_tree(path, writable=True, **named)\n"
            "_seal = syscalls.mount_setattr\n"
            "def seal_template():\n"
            "    syscalls.pivot_root(b'.', b'.')\n"
            "    syscalls.umount2(b'.', syscalls.MNT_DETACH)\n"
            "    os.chdir('/')\n",
        },
    ),
    without_steps("network namespace", "net", "loopback", flags=_NEW["net"]),
    without_steps("ipc namespace", "ipc", flags=_NEW["ipc"]),
    without_steps(
        "uts namespace",
        "uts",
        "hostname",
        flags=_NEW["uts"],
        reason="hides the host's name, and seccomp refuses to set it",
    ),
    without_steps(
        "cgroup namespace",
        "cgroup",
        flags=_NEW["cgroup"],
        reason="hides where the supervisor lies; no cgroup file system is in a sandbox's sight",
    ),
    Wall(
        "own /proc: hidepid, subset",
        "proc",
        {
            "sandbox/mounts.py": "\n\ndef fresh_proc(*, only_pids):\n"
            "    return make_file_system('proc', {}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)\n",
        },
    ),
    Wall(
        "tmpfs caps",
        "scratch",
        {
            "sandbox/mounts.py": "\n\n_capped = scratch\n"
            "def scratch(*, size, inodes, owner):\n"
            "    return _capped(size=1 << 40, inodes=1 << 30, owner=owner)\n",
        },
    ),
    without_steps("seccomp", "seccomp", "seccomp"),
    without_steps(
        "landlock",
        "landlock",
        "landlock",
        reason="a second line behind mounts and namespaces, of other kernel code",
    ),
    with_init(
        "capabilities dropped",
        "capabilities",
        SKIP.format(step="capabilities"),
        "those of a namespace that owns nothing reach nothing; seccomp refuses what is theirs",
    ),
    with_init(
        "no_new_privs",
        "no_new_privs",
        SKIP.format(step="no_new_privs"),
        "the kernel asks it of whoever installs Landlock or a filter without capabilities: without"
        " it no sandbox is built",
    ),
    with_init("rlimits", "rlimits", SKIP.format(step="rlimits")),
    with_init(
        "descriptors closed",
        "descriptors",
        SKIP.format(step="descriptors")
        + WITHOUT.format(step="session", owner="syscalls", name="close_all_but"),
    ),
    with_init(
        "session of its own",
        "session",
        WITHOUT.format(step="session", owner="os", name="setsid"),
    ),
    with_init(
        "not dumpable",
        "dumpable",
        SKIP.format(step="dumpable"),
        "ptrace is refused by seccomp, and a core is not written",
    ),
    with_init(
        "offered to the OOM killer",
        "limits",
        SKIP.format(step="oom_score"),
        "decides who dies when the host itself is out of memory, which no suite can stage",
    ),
    without_limits("memory limit", "memory"),
    without_limits("pids limit", "pids"),
    without_limits("cpu limit", "cpu"),
)


def refusal(marker: Path = MARKER, cpuinfo: Path = CPUINFO) -> str | None:
    """Why this must not run here; None where it may."""
    if not marker.exists():
        return f"this is no guest of `make test-vm`: there is no {marker}"
    flags = {word for line in cpuinfo.read_text().splitlines() for word in line.split()}
    if "hypervisor" not in flags:
        return "this is no virtual machine: its processor does not name a hypervisor"
    return None


def ablate(package: Path, wall: Wall, folder: Path) -> Path:
    """A folder to put first in the path: the package without this wall."""
    copy = folder / wall.name.replace(" ", "-").replace("/", "").replace(",", "").replace(":", "")
    shutil.copytree(package, copy / "casemate", ignore=shutil.ignore_patterns("__pycache__"))
    for name, lines in wall.lines.items():
        file = copy / "casemate" / name
        file.write_text(file.read_text() + lines)
    return copy


def attack(
    path: Path | None, folder: Path, name: str, walls: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """What became of each attack that names one of these walls, against the package in `path` or
    the installed one. A suite that does not come to an end is an error of the whole: {"": ...}."""
    report, log = folder / f"ablated-{name}.json", folder / f"ablated-{name}.log"
    environment = {**os.environ, **({} if path is None else {"PYTHONPATH": str(path)})}
    with log.open("wb") as said:
        try:
            subprocess.run(
                [sys.executable, "-c", ATTACK, str(report), *walls],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=SUITE_PATIENCE,
                check=True,
            )
        except subprocess.SubprocessError as error:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            why = f"{error}: {''.join(last)}"
            return {"": {"contained": False, "kind": "", "seen": "lost", "why": why}}
    outcomes = json.loads(report.read_text())["outcomes"]
    return {each["name"]: each for each in outcomes}


def got_through(outcome: dict[str, Any]) -> bool:
    """A task that reaches for something did so if it came to its end; one that misbehaves, if it
    got another verdict than its own. Not one that never ran."""
    if outcome["contained"] or outcome["seen"] in ("setup", "lost"):
        return False
    return outcome["kind"] != "attacks" or str(outcome["why"]).startswith("GOT THROUGH")


def main() -> int:
    why = refusal()
    if why is not None:
        print(f"--ablate: refused: {why}", file=sys.stderr)
        return 2
    [package] = map(Path, importlib.import_module("casemate").__path__)
    results, wanted = Path(sys.argv[1]), set(sys.argv[2:])
    chosen = [wall for wall in WALLS if not wanted or wall.name in wanted]
    whole = attack(None, results, "nothing", {wall.called for wall in chosen})
    escaped = {name for name, outcome in whole.items() if not outcome["contained"]}
    table: list[dict[str, Any]] = []

    def note(name: str, reason: str, changed: dict[str, dict[str, Any]]) -> None:
        through = sorted(name for name, outcome in changed.items() if got_through(outcome))
        other = {n: str(o["why"]) for n, o in changed.items() if n not in through}
        print(f"vm: without {name}: {', '.join(through) or '-'} | {other or ''}", flush=True)
        table.append({"wall": name, "through": through, "otherwise": other, "reason": reason})
        (results / "ablation.json").write_text(json.dumps(table))

    note("nothing", "every wall stands", {name: whole[name] for name in escaped})
    for wall in chosen:
        path = ablate(package, wall, Path("/srv/ablated"))
        outcomes = attack(path, results, path.name, [wall.called])
        changed = {n: o for n, o in outcomes.items() if not o["contained"] and n not in escaped}
        note(wall.name, wall.reason, changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
