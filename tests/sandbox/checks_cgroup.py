"""Every limit held by the kernel, on pure cgroup v2 with all controllers and with swap: the guest
of `make test-vm`, as root and as an ordinary user with a delegated scope."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.limits import MIB
from casemate.sandbox import cgroup
from casemate.sandbox.cgroup import Hierarchy
from fakes import wait_until
from sealed import House, python

# Only turns a hang into a failure, on an emulated processor too.
PATIENCE = 900


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as made:
        yield made


def executed(folder: Path, code: str, *options: str) -> dict[str, Any]:
    """The report of a command under `casemate exec`."""
    report = folder / "report.json"
    subprocess.run(
        ["casemate", "exec", "--report", str(report), *options, "--", *python(code)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def test_this_host_is_what_it_is_for() -> None:
    facts = cgroup.probe()
    assert facts.hierarchy is Hierarchy.V2
    assert facts.controllers == {"memory", "pids", "cpu"}
    assert (facts.problems, facts.remedy, facts.can_kill) == ((), "", True)
    assert facts.has_swap


def test_a_sandbox_is_born_in_its_group_and_nobody_else_is_moved(house: House) -> None:
    own = Path("/proc/self/cgroup").read_text()
    sandbox = house.spawn(*python("import time; time.sleep(1000)"))
    sandbox.wait_record(60)
    [(_, group)] = [pair for pair in house._living if pair[0] is sandbox]
    [folder] = group.folders
    member = Path(f"/proc/{sandbox.host_pid}/cgroup").read_text().strip()
    assert Path("/sys/fs/cgroup", member.removeprefix("0::/")) == folder
    assert len(group.members()) == 2  # init and the program
    assert Path("/proc/self/cgroup").read_text() == own
    settings = {
        name: (folder / name).read_text().strip()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
    }
    assert settings == {
        "memory.max": str(256 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "64",
    }
    house.bury(sandbox)
    wait_until(lambda: not folder.exists())


def test_freezing_stops_and_killing_ends_what_is_frozen(house: House) -> None:
    sandbox = house.spawn(*python("while True: pass"))
    sandbox.wait_record(60)
    [(_, group)] = [pair for pair in house._living if pair[0] is sandbox]
    assert group.freeze_nowait()
    wait_until(group.is_frozen)
    before = group.usage().cpu
    assert group.usage().cpu == before
    group.kill()
    assert group.wait_empty(60)
    house.bury(sandbox)


def test_one_process_out_of_memory_takes_the_whole_tree_and_no_swap(tmp_path: Path) -> None:
    code = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        time.sleep(1000)
kept = []
while True:
    kept.append(bytearray(os.urandom(1 << 20)))
"""
    report = executed(tmp_path, code, "--memory", "64MiB")
    assert report["verdict"] == "memory", report
    assert report["walls"]["limits"]["memory"] == "cgroup"
    assert report["usage"]["memory"] <= 64 * MIB


def test_a_cpu_ceiling_is_kept_over_all_processes(tmp_path: Path) -> None:
    code = """
import os, time
for _ in range(3):
    if os.fork() == 0: break
began = time.monotonic()
while time.monotonic() - began < 2: pass
"""
    report = executed(tmp_path, code, "--cpu", "0.25", "--wall", "30s")
    assert report["verdict"] == "completed", report
    assert report["walls"]["limits"] == {"cpu": "cgroup", "memory": "cgroup", "pids": "cgroup"}
    # A quota of 25 ms in each 100: what is used cannot be more, however many want it.
    whole = report["startup"] + report["seconds"]
    assert report["usage"]["cpu"] <= 0.25 * (whole + 0.5), report


def test_a_fork_bomb_meets_its_ceiling(tmp_path: Path) -> None:
    code = "import os\nwhile True: os.fork()"
    report = executed(tmp_path, code, "--pids", "20")
    assert report["usage"]["pids"] <= 20, report
    assert report["verdict"] == "pids", report
