"""`casemate doctor`: true on this host and for pretended ones, readable in both forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.protocol.events import ErrorKind
from casemate.sandbox.cgroup import CgroupFacts, CgroupManager
from casemate.sandbox.probe import Fact
from casemate.supervisor.cli import doctor, scope
from casemate.supervisor.config import load_config
from casemate.supervisor.exec import Report, refusal
from rich.console import Console

PATIENCE = 60.0
CLI = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()", "doctor"]

POSTURE = {
    "uid": [1000, 1000, 1000],
    "gid": [1000, 1000, 1000],
    "is_bare": True,
    "no_new_privs": True,
    "seccomp": 2,
}
LANDLOCK = Fact(name="landlock", present=False, detail="not built in", remedy="Boot with lsm=.")
MEMORY = Fact(
    name="memory limit",
    present=False,
    detail="sampled: rlimits and polling",
    remedy="systemd-run --user --scope -p Delegate=yes casemate ...",
)
PIDS = Fact(
    name="pids limit", present=False, detail="sampled: rlimits and polling", remedy=MEMORY.remedy
)


def built(limits: dict[str, str], degraded: tuple[str, ...] = ()) -> Report:
    walls = {"posture": POSTURE, "limits": limits, "degraded": list(degraded)}
    return Report(verdict="completed", ran=True, exit_code=0, startup=0.004, walls=walls)


def examination(facts: tuple[Fact, ...], trial: Report) -> doctor.Examination:
    missing = tuple(fact.name for fact in facts if not fact.present)
    return doctor.Examination(
        ok=trial.verdict == "completed",
        meaning=doctor.meaning(trial, missing),
        missing=missing,
        facts=facts,
        problems=("memory: swap is not bounded here",),
        notes=(),
        trial=trial,
    )


@pytest.fixture
def on_this_host(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "--json", "--state", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_this_host_can_build_sandboxes(on_this_host: subprocess.CompletedProcess[str]) -> None:
    assert on_this_host.returncode == 0, on_this_host
    found = json.loads(on_this_host.stdout)
    assert found["ok"] and found["meaning"].startswith("Every wall stands")
    assert found["trial"]["walls"]["posture"].items() >= POSTURE.items()
    assert 0 < found["trial"]["startup"] < PATIENCE
    walls = {fact["name"] for fact in found["facts"] if fact["present"]}
    assert {"kernel", "python", "user", "pid", "mount", "net", "proc", "seccomp"} <= walls
    assert set(found["missing"]) == {f["name"] for f in found["facts"] if not f["present"]}


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "--state", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done
    assert "\x1b" not in done.stdout
    *_, trial, meaning = done.stdout.splitlines()
    assert trial.startswith("built") and "seccomp 2" in trial and "uid 1000" in trial
    assert meaning.startswith("Every wall stands")


def test_a_host_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The operator insists on cgroups, and there are none."""
    why = "strict: [cgroup]: no cgroup holds the limits"
    monkeypatch.setattr(doctor, "build_one", lambda config: refusal(why))
    monkeypatch.setattr(doctor, "settle", lambda: None)
    assert doctor.examine(as_json=True, state=tmp_path) == 3
    found = doctor.look(load_config(state=tmp_path))
    assert not found.ok and found.trial.error == why
    assert found.trial.verdict == ErrorKind.SETUP
    assert "casemate will refuse to run" in found.meaning


@pytest.mark.parametrize(
    ("facts", "trial", "expected"),
    [
        ((), built({"memory": "cgroup"}), "and the kernel holds every limit."),
        (
            (MEMORY, PIDS),
            built({"memory": "sampled", "pids": "sampled", "cpu": "none"}),
            "limits on memory and pids are sampled",
        ),
        ((LANDLOCK,), refusal("no"), "(landlock missing): casemate will refuse to run."),
        ((LANDLOCK,), built({"memory": "cgroup"}, ("landlock",)), "built here WITHOUT landlock"),
    ],
)
def test_what_it_means(facts: tuple[Fact, ...], trial: Report, expected: str) -> None:
    assert expected in examination(facts, trial).meaning


@pytest.mark.parametrize("terminal", [True, False])
def test_each_remedy_is_told_once(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    found = examination((LANDLOCK, MEMORY, PIDS), built({"memory": "sampled", "pids": "sampled"}))
    if terminal:
        doctor.print_table(found, Console(force_terminal=True, width=200))
    else:
        doctor.print_lines(found)
    text = capsys.readouterr().out
    assert text.count("systemd-run --user --scope -p Delegate=yes") == 1
    assert text.count("Boot with lsm=") == 1
    assert 'degrade = ["landlock"]' in text and 'degrade = ["memory' not in text
    assert "swap is not bounded here" in text
    assert found.meaning in text


def test_cgroups_that_disappoint_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Disappointing(CgroupManager):
        def __init__(self, facts: CgroupFacts) -> None:
            self.problems = ["memory: swap is not bounded here"]

        def close(self, patience: float = 0) -> tuple[Path, ...]:
            return ()

    monkeypatch.setattr(doctor, "CgroupManager", Disappointing)
    assert doctor.look(load_config(state=tmp_path)).problems == (
        "memory: swap is not bounded here",
    )


def test_settling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a delegated folder we step aside; where that fails, limits are sampled and it is said."""
    took: list[bool] = []
    monkeypatch.setattr(scope, "take_place", lambda: took.append(True))
    scope.settle()
    assert took == [True] and capsys.readouterr().err == ""

    def refuse() -> None:
        raise SetupRefused("the user's systemd manager does not answer")

    monkeypatch.setattr(scope, "take_place", refuse)
    scope.settle()
    said = "casemate: no cgroup of our own: the user's systemd manager does not answer\n"
    assert capsys.readouterr().err == said
