"""Hosts that lack a wall, really: `exec`, `run` and `doctor` refuse with what is missing and what
to do, or go without where the operator named it, and say so in every report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from casemate.sandbox import landlock

LACKING = str(Path(__file__).with_name("lacking.py"))
PATIENCE = 120.0
CLI = "from casemate.supervisor.cli import main; main()"

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`casemate` on a host without some pieces, and with what the operator gives up."""

    def run(
        *words: str, without: tuple[str, ...], degrade: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CLI, *words]
        env = {**os.environ, "CASEMATE_STATE": str(tmp_path / "state")}
        if degrade:
            env["CASEMATE_DEGRADE"] = degrade
        return subprocess.run(
            [sys.executable, LACKING, *without, "--", *command],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


PROGRAM = ("--", "/bin/sh", "-c", "echo it ran")


@pytest.mark.parametrize(
    ("piece", "wall", "words"),
    [
        ("landlock", "landlock", "this kernel has no Landlock"),
        ("landlock switched off", "landlock", "lsm=landlock"),
        ("landlock refused", "landlock", "a filter that casemate was started behind"),
        ("seccomp", "seccomp", "CONFIG_SECCOMP_FILTER"),
        ("net", "net", "CONFIG_NET_NS"),
        ("cgroup", "cgroup", "CONFIG_CGROUPS"),
        ("user", "user", "unshare: Operation not permitted"),
        ("pid", "pid", "unshare: Operation not permitted"),
        ("uts", "uts", "CONFIG_UTS_NS"),
        ("ipc", "ipc", "CONFIG_IPC_NS"),
        ("mount", "mount", "unshare: Operation not permitted"),
        ("clone3", "pid", "clone3: Function not implemented"),
    ],
)
def test_what_is_missing_is_refused_by_name_and_nothing_runs(
    cli: Cli, piece: str, wall: str, words: str
) -> None:
    done = cli("exec", *PROGRAM, without=(piece,))
    assert (done.returncode, done.stdout) == (125, ""), done
    assert f"the {wall} wall cannot be built" in done.stderr
    assert words in done.stderr
    if wall not in ("pid", "mount") and not (wall == "user" and os.geteuid() != 0):
        assert f"degrade: [{wall}]" in done.stderr


def test_where_not_even_prctl_is_allowed_it_is_a_refusal_in_words(cli: Cli) -> None:
    done = cli("exec", *PROGRAM, without=("prctl",))
    assert (done.returncode, done.stdout) == (125, ""), done
    assert done.stderr.startswith("casemate: setup: ")
    assert "Traceback" not in done.stderr


def posture_lacks(wall: str, posture: dict[str, Any]) -> bool:
    """The kernel says so too."""
    if wall == "landlock":
        return posture["landlock"] is None
    if wall == "seccomp":
        # That of `lacking.py` is there, and is not ours.
        return int(posture["filters"]) == 1
    return wall in posture["shared"]


@pytest.mark.parametrize("wall", ["landlock", "seccomp", "net", "cgroup", "uts", "ipc"])
def test_what_the_operator_gives_up_is_missing_and_said_to_be(
    cli: Cli, wall: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = cli("exec", "--report", str(report), *PROGRAM, without=(wall,), degrade=wall)
    assert (done.returncode, done.stdout) == (0, "it ran\n"), done.stderr
    walls = json.loads(report.read_text())["walls"]
    assert walls["degraded"] == [wall]
    if not (wall == "net" and landlock.abi()[0] >= 4):
        assert walls[wall] == "missing"
    assert posture_lacks(wall, walls["posture"])
    other = {"landlock", "seccomp", "net", "cgroup"} - {wall}
    assert not any(posture_lacks(name, walls["posture"]) for name in other - {"seccomp"})


def test_what_is_given_up_in_vain_changes_nothing(cli: Cli) -> None:
    done = cli("exec", *PROGRAM, without=("landlock",), degrade="net,seccomp,cgroup,uts,ipc")
    assert (done.returncode, done.stdout) == (125, "")
    assert "the landlock wall" in done.stderr


HIDE_CGROUPS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PRIVATE_RECURSIVE, REMOUNT_BIND_READ_ONLY = 0x44000, 0x1021
def done(result):
    if result: raise OSError(ctypes.get_errno(), "mount")
NEW_MOUNT_NAMESPACE = 0x20000
done(libc.unshare(NEW_MOUNT_NAMESPACE))
done(libc.mount(b"none", b"/", None, PRIVATE_RECURSIVE, None))
places = [line.split()[4] for line in open("/proc/self/mountinfo")]
for place in [p for p in places if p.startswith("/sys/fs/cgroup/")] or ["/sys/fs/cgroup"]:
    if sys.argv[1] == "none":
        done(libc.mount(b"none", place.encode(), b"tmpfs", 0, None))
    else:
        done(libc.mount(None, place.encode(), None, REMOUNT_BIND_READ_ONLY, None))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the host's cgroups")
@pytest.mark.parametrize("how", ["none", "read-only"])
def test_without_cgroups_limits_are_sampled_or_where_told_to_be_strict_it_is_a_refusal(
    how: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    state = str(tmp_path / "state")
    command = [sys.executable, "-c", HIDE_CGROUPS, how, sys.executable, "-c", CLI, "exec"]
    command += ["--state", state, "--report", str(report), *PROGRAM]

    def run(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**os.environ, **env}, cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    done = run()
    assert (done.returncode, done.stdout) == (0, "it ran\n"), done.stderr
    assert json.loads(report.read_text())["walls"]["limits"]["memory"] == "sampled"
    strict = run(CASEMATE_STRICT="cgroup")
    assert (strict.returncode, strict.stdout) == (125, ""), strict
    assert "strict" in strict.stderr and "cgroup" in strict.stderr


def test_doctor_names_what_is_missing_and_what_to_do(cli: Cli) -> None:
    strict = cli("doctor", without=("landlock", "net"))
    assert strict.returncode == 3
    assert "MISSING  landlock: this kernel has no Landlock" in strict.stdout
    assert "MISSING  net: " in strict.stdout
    assert 'degrade = ["landlock"]' in strict.stdout
    assert "No sandbox can be built on this host (net, landlock missing)" in strict.stdout
    loose = cli("doctor", "--json", without=("landlock", "net"), degrade="landlock,net")
    assert loose.returncode == 0, loose.stdout
    found = json.loads(loose.stdout)
    assert "WITHOUT landlock, net" in found["meaning"]
    assert found["trial"]["walls"]["degraded"] == ["landlock", "net"]
    assert found["trial"]["walls"]["posture"]["landlock"] is None


PIPELINE = """
name: small
tasks:
  a: {command: [sh, -c, "echo it ran"]}
"""


def test_the_events_of_a_run_say_what_it_went_without(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    strict = cli("run", "--json", str(file), without=("landlock",))
    assert strict.returncode != 0
    assert '"task.started"' not in strict.stdout
    assert "the landlock wall cannot be built" in strict.stdout + strict.stderr
    loose = cli("run", "--json", str(file), without=("landlock",), degrade="landlock")
    assert loose.returncode == 0, loose.stderr
    events = [json.loads(line) for line in loose.stdout.splitlines()]
    (started,) = (event for event in events if event["kind"] == "task.started")
    assert started["data"]["walls"]["degraded"] == ["landlock"]
    assert started["data"]["walls"]["landlock"] == "missing"
    assert started["data"]["walls"]["posture"]["landlock"] is None


UNKNOWN = """
import os, sys
uname = os.uname()
fields = list(uname)
fields[4] = 'riscv64'
os.uname = lambda: os.uname_result(fields)
sys.argv = ['casemate', *sys.argv[1:]]
from casemate.supervisor.cli import main
main()
"""


@pytest.mark.parametrize(("command", "code"), [("exec", 125), ("doctor", 3)])
def test_an_unknown_architecture_is_refused(command: str, code: int) -> None:
    words = PROGRAM if command == "exec" else ()
    done = subprocess.run(
        [sys.executable, "-c", UNKNOWN, command, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done
    assert "riscv64" in done.stderr + done.stdout
    assert "it ran" not in done.stdout
