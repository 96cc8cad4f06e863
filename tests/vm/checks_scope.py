"""An ordinary user without a delegated scope: one is asked of the user's manager, for what is ours
alone, and what embeds us stays where it is. For the guest of `make test-vm`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import casemate
import pytest
from casemate.protocol.limits import MIB
from casemate.sandbox import cgroup
from fakes import wait_until
from runs import Embedded, Place

RUNTIME = f"/run/user/{os.geteuid()}"
ALL = {"memory": "cgroup", "pids": "cgroup"}


def folder_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip()


def scopes() -> list[str]:
    """Those that the manager has for us."""
    done = subprocess.run(
        ["systemctl", "--user", "list-units", "--plain", "--no-legend", "casemate-*.scope"],
        env={**os.environ, "XDG_RUNTIME_DIR": RUNTIME},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.fixture(autouse=True)
def nobody_moves_us() -> Iterator[None]:
    before = folder_of(os.getpid())
    assert not before.startswith("0::/user.slice"), "this is not what a session looks like"
    yield
    assert folder_of(os.getpid()) == before
    wait_until(lambda: scopes() == [])


@pytest.fixture(autouse=True)
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own settings take it away."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", RUNTIME)


def test_here_nothing_was_delegated() -> None:
    assert cgroup.probe().controllers == set()


def test_the_doctor_finds_every_limit_held() -> None:
    done = subprocess.run(["casemate", "doctor", "--json"], capture_output=True, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 0, told
    assert told["missing"] == ["reserved ids"]
    assert told["trial"]["walls"]["limits"] == {**ALL, "cpu": "cgroup"}
    assert done.stderr == b""


def test_a_command_is_held_by_cgroups(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        ["casemate", "exec", "--report", str(report), "--cpu", "1", "--", "echo", "here"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")
    assert json.loads(report.read_text())["walls"]["limits"] == {**ALL, "cpu": "cgroup"}


def test_a_program_that_embeds_us_stays_and_its_engine_gets_the_scope(
    tmp_path: Path, place: Place
) -> None:
    place.tasks("def work(input, ctx):\n    return len(bytearray(1 << 30))\n")
    with Embedded(tmp_path / "state") as house:
        assert "/casemate-" in folder_of(house.engine)
        history = house.run(place.spec(tasks={"work": {}}))
    assert history.one("task.started").data["walls"]["limits"] == ALL
    assert history.error("work")["kind"] == "memory"


def test_run_sandboxed_is_held_by_cgroups() -> None:
    result = casemate.run_sandboxed(
        ["python3", "-c", "x = bytearray(1 << 30)"], limits=casemate.Limits(memory="64MiB")
    )
    assert result.verdict == "memory"
    assert result.walls["limits"] == ALL
    assert result.usage.memory is not None and result.usage.memory <= 64 * MIB
