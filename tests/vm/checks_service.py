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

import psutil
import pytest
from casemate import supervisor
from fakes import wait_until

[FOLDER] = supervisor.__path__
UNIT = Path("/etc/systemd/system/casemate.service")
STATE = Path("/var/lib/casemate")
GROUP = Path("/sys/fs/cgroup/system.slice/casemate.service")
ALL = {"memory": "cgroup", "pids": "cgroup", "cpu": "cgroup"}

# Each is cut off in its first attempt, and taken up by the service.
SERVED = """
name: served
defaults: {limits: {memory: 64MiB, cpu: 1, pids: 32}}
tasks:
  gate: {execute: "code.py:gate"}
  good: {execute: "code.py:good", needs: [gate]}
  balloon: {execute: "code.py:balloon", needs: [gate]}
"""
ENDLESS = """
name: endless
tasks:
  wait: {execute: "code.py:wait"}
"""
SUBMITTED = """
name: submitted
tasks:
  good: {execute: "code.py:good"}
"""
CODE = """
import time

def gate(input, ctx):
    ctx.emit("here")
    if ctx.attempt == 1:
        time.sleep(1000)

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


def command(*words: str) -> list[str]:
    """`casemate` as another terminal of the service's account runs it."""
    casemate = ("/opt/casemate/bin/casemate", *words, "--state", str(STATE))
    clean = ("env", "-i", "PATH=/usr/bin:/bin", "LANG=C.UTF-8", f"HOME={STATE}")
    return ["runuser", "-u", "casemate", "--", *clean, *casemate]


def client(*words: str) -> str:
    done = subprocess.run(command(*words), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), (words, done.stderr, journal())
    return done.stdout


def events(run: str) -> list[dict[str, Any]]:
    told = client("events", run, "--json")
    return [json.loads(line) for line in told.splitlines()]


def cut_off(name: str) -> str:
    """A run whose supervisor is killed while its first task is at work."""
    words = command("run", f"/srv/pipelines/{name}.yaml", "--json")
    with subprocess.Popen(words, cwd="/", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["kind"] == "task.emitted":
                break
        else:
            raise AssertionError(f"{name} never began")
        for each in psutil.Process(process.pid).children():  # `runuser` waits for it
            each.kill()
        process.kill()
    run: str = event["run"]
    return run


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, str]]:
    """The service, installed by the words at the head of the unit (the venv is the one we run in),
    and the runs that it found when it started."""
    Path("/opt/casemate").symlink_to(sys.prefix)
    subprocess.run(["useradd", "--system", "--home-dir", str(STATE), "casemate"], check=True)
    shutil.copy(Path(FOLDER, UNIT.name), UNIT)
    STATE.mkdir(mode=0o700)
    shutil.chown(STATE, "casemate", "casemate")
    pipelines = Path("/srv/pipelines")
    pipelines.mkdir()
    (pipelines / "served.yaml").write_text(SERVED)
    (pipelines / "endless.yaml").write_text(ENDLESS)
    (pipelines / "submitted.yaml").write_text(SUBMITTED)
    (pipelines / "code.py").write_text(CODE)
    found = {name: cut_off(name) for name in ("served", "endless")}
    systemctl("daemon-reload")
    systemctl("start", UNIT.name)
    wait_until(lambda: "serving" in journal() or show("ActiveState") != "active")
    assert "serving" in journal(), journal()
    yield found
    systemctl("stop", UNIT.name)


def test_systemd_finds_nothing_to_complain_of(runs: dict[str, str]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_taken_up_with_every_limit_held_by_the_units_cgroup(runs: dict[str, str]) -> None:
    client("events", runs["served"], "--follow")
    told = events(runs["served"])
    since = [event["kind"] for event in told].index("run.recovered")
    started = [event for event in told[since:] if event["kind"] == "task.started"]
    assert [event["data"]["walls"]["limits"] for event in started] == [ALL] * 3
    outputs = {e["task"]: e["data"]["output"] for e in told if e["kind"] == "task.completed"}
    assert outputs == {"gate": None, "good": {"sum": 190}}
    [failed] = [event for event in told if event["kind"] == "task.failed"]
    assert (failed["task"], failed["data"]["error"]["kind"]) == ("balloon", "memory")
    # The kernel killed for memory below the unit, and the unit lives.
    assert show("ActiveState") == "active"
    assert show("NRestarts") == "0"


def test_a_pipeline_comes_from_another_terminal(runs: dict[str, str]) -> None:
    run = json.loads(client("submit", "/srv/pipelines/submitted.yaml", "--json"))["run"]
    client("events", run, "--follow")
    [completed] = [event for event in events(run) if event["kind"] == "task.completed"]
    assert completed["data"]["output"] == {"sum": 190}


def test_it_stops_in_order_leaves_nothing_alive_and_goes_on_later(runs: dict[str, str]) -> None:
    run = runs["endless"]
    wait_until(lambda: [e["kind"] for e in events(run)].count("task.emitted") == 2)
    pid = [e["data"]["pid"] for e in events(run) if e["kind"] == "task.started"][-1]
    member = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert Path("/sys/fs/cgroup", member.removeprefix("0::/")).is_relative_to(GROUP)
    systemctl("stop", UNIT.name)
    assert show("Result") == "success"
    assert show("ExecMainStatus") == "0"
    assert not Path(f"/proc/{pid}").exists()
    assert not GROUP.exists()
    assert json.loads(client("show", run, "--json"))["run"]["state"] == "interrupted"
    systemctl("start", UNIT.name)
    wait_until(lambda: [e["kind"] for e in events(run)].count("task.emitted") == 3)
    client("cancel", run)
    wait_until(lambda: events(run)[-1]["kind"] == "run.cancelled")
