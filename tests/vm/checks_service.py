"""casemate.service as it ships, started by systemd: it serves, its limits are cgroups of the unit,
a task that breaks them is the task's affair, and it stops at once. For the guest of `make test-vm`,
as root."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate import supervisor
from fakes import wait_until

[FOLDER] = supervisor.__path__
UNIT = Path("/etc/systemd/system/casemate.service")
STATE = Path("/var/lib/casemate")
GROUP = Path("/sys/fs/cgroup/system.slice/casemate.service")
ALL = {"memory": "cgroup", "pids": "cgroup", "cpu": "cgroup"}

PIPELINE = """
name: served
defaults: {limits: {memory: 64MiB, cpu: 1, pids: 32}}
tasks:
  good: {execute: "code.py:good"}
  balloon: {execute: "code.py:balloon"}
  after: {execute: "code.py:good", needs: [good]}
"""
ENDLESS = """
name: endless
tasks:
  wait: {execute: "code.py:wait"}
"""
CODE = """
import time

def good(input, ctx):
    return {"sum": sum(range(20))}

def balloon(input, ctx):
    return len(bytearray(1 << 30))

def wait(input, ctx):
    ctx.emit("here")
    time.sleep(1000)
"""


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr, journal())
    return done.stdout.strip()


def journal() -> str:
    return subprocess.run(
        ["journalctl", "--unit", UNIT.name, "--no-pager", "--output=cat"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def show(name: str) -> str:
    return systemctl("show", UNIT.name, "--value", f"--property={name}")


def client(*words: str) -> str:
    """`casemate` as another terminal of the service's account runs it."""
    command = ["/opt/casemate/bin/casemate", *words, "--state", str(STATE)]
    done = subprocess.run(
        ["runuser", "-u", "casemate", "--", *command],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), (words, done.stderr, journal())
    return done.stdout


def events(run: str) -> list[dict[str, Any]]:
    told = client("events", run, "--json")
    return [json.loads(line) for line in told.splitlines()]


def submit(name: str) -> str:
    run: str = json.loads(client("submit", f"/srv/pipelines/{name}.yaml", "--json"))["run"]
    return run


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """Installed by the words at the head of the unit; the venv is the one we run in."""
    Path("/opt/casemate").symlink_to(sys.prefix)
    subprocess.run(["useradd", "--system", "--home-dir", str(STATE), "casemate"], check=True)
    shutil.copy(Path(FOLDER, UNIT.name), UNIT)
    pipelines = Path("/srv/pipelines")
    pipelines.mkdir()
    (pipelines / "served.yaml").write_text(PIPELINE)
    (pipelines / "endless.yaml").write_text(ENDLESS)
    (pipelines / "code.py").write_text(CODE)
    systemctl("daemon-reload")
    systemctl("start", UNIT.name)
    wait_until(lambda: "serving" in journal() or show("ActiveState") != "active")
    assert "serving" in journal(), journal()
    yield
    systemctl("stop", UNIT.name)


def test_systemd_finds_nothing_to_complain_of(service: None) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(UNIT)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_served_with_every_limit_held_by_the_units_cgroup(service: None) -> None:
    run = submit("served")
    client("events", run, "--follow")
    told = events(run)
    started = [event for event in told if event["kind"] == "task.started"]
    assert [event["data"]["walls"]["limits"] for event in started] == [ALL] * 3
    assert {e["task"]: e["data"]["output"] for e in told if e["kind"] == "task.completed"} == {
        "good": {"sum": 190},
        "after": {"sum": 190},
    }
    [failed] = [event for event in told if event["kind"] == "task.failed"]
    assert (failed["task"], failed["data"]["error"]["kind"]) == ("balloon", "memory")
    # The kernel killed for memory below the unit, and the unit lives.
    assert show("ActiveState") == "active"
    assert show("NRestarts") == "0"


def test_it_stops_at_once_and_leaves_nothing(service: None) -> None:
    run = submit("endless")
    wait_until(lambda: any(event["kind"] == "task.emitted" for event in events(run)))
    [pid] = [e["data"]["pid"] for e in events(run) if e["kind"] == "task.started"]
    member = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert Path("/sys/fs/cgroup", member.removeprefix("0::/")).is_relative_to(GROUP)
    systemctl("stop", UNIT.name)
    assert show("Result") == "success"
    assert show("ExecMainStatus") == "0"
    assert not Path(f"/proc/{pid}").exists()
    assert not GROUP.exists()
    assert json.loads(client("show", run, "--json"))["state"] == "interrupted"


def test_it_goes_on_where_it_was_stopped(service: None) -> None:
    systemctl("start", UNIT.name)
    [run] = [
        each["id"]
        for each in json.loads(client("ps", "--json"))
        if each["pipeline"] == "endless"
    ]  # fmt: skip
    wait_until(lambda: "run.recovered" in {event["kind"] for event in events(run)})
    client("cancel", run)
    wait_until(lambda: events(run)[-1]["kind"] == "run.cancelled")
