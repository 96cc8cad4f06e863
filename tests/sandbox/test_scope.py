"""Who asks the user's systemd manager for a scope, what is asked, and what comes of an answer.

The manager here is a script in place of busctl; the real one answers in `make test-vm`
(tests/vm/checks_scope.py).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.sandbox import cgroup, scope
from casemate.sandbox.cgroup import Branch, CgroupFacts, Hierarchy

BARE = CgroupFacts(Hierarchy.V2, (), ("controllers not to be had: memory, pids, cpu",))
OURS = CgroupFacts(Hierarchy.V2, (), settle_in=Path("/sys/fs/cgroup/ours"))
FULL = CgroupFacts(
    Hierarchy.V2,
    (Branch(Path("/sys/fs/cgroup/a"), unified=True, controllers=frozenset(cgroup.LIMITING)),),
)

# Moves whoever asks, as the manager does; $1.. are busctl's.
GIVES = """
printf '%s\\n' "$@" > {asked}
for word in "$@"; do case "$word" in casemate-*.scope)
    echo "0::/user.slice/app.slice/$word" > {membership};;
esac; done
"""
REFUSES = "echo 'Call failed: Access denied' >&2; exit 1"


class Systemd:
    """A host with systemd and, if it is told so, a user's manager that speaks by `script`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.runtime = root / "run/user" / str(os.geteuid())
        self.asked = root / "asked"
        self.membership = root / "proc/self/cgroup"
        self.settled: list[CgroupFacts] = []
        for folder in (self.runtime, root / "run/systemd/system", self.membership.parent):
            folder.mkdir(parents=True)
        self.membership.write_text("0::/user.slice/session-1.scope\n")
        self._patch = monkeypatch
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(cgroup, "settle", lambda facts, root: self.settled.append(facts))

    def find(self, *facts: CgroupFacts) -> None:
        """What is found at each look."""
        looks = iter(facts)
        self._patch.setattr(cgroup, "probe", lambda root: next(looks))

    def answer(self, script: str) -> None:
        programs = self.root / "bin"
        programs.mkdir()
        busctl = programs / "busctl"
        script = script.format(asked=self.asked, membership=self.membership)
        busctl.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}")
        busctl.chmod(0o755)
        self._patch.setenv("PATH", str(programs))

    def take_place(self) -> None:
        scope.take_place(self.root)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path) -> Iterator[Systemd]:
    host = Systemd(tmp_path, monkeypatch)
    # A socket's path has 107 bytes, and ours are longer: made elsewhere, and moved.
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(runtime / "bus"))
        os.rename(runtime / "bus", host.runtime / "bus")
        yield host


def test_in_roots_folder_a_scope_is_asked_for_this_process_alone(systemd: Systemd) -> None:
    systemd.find(BARE, OURS)
    systemd.answer(GIVES)
    systemd.take_place()
    words = systemd.asked.read_text().splitlines()
    assert words[0] == f"--address=unix:path={systemd.runtime}/bus"
    assert words[words.index("PIDs") : words.index("PIDs") + 4] == [
        "PIDs", "au", "1", str(os.getpid()),
    ]  # fmt: skip
    assert words[words.index("Delegate") : words.index("Delegate") + 3] == ["Delegate", "b", "true"]
    assert systemd.settled == [OURS]


@pytest.mark.parametrize("facts", [FULL, OURS, CgroupFacts(Hierarchy.HYBRID, ())])
def test_where_nothing_is_to_be_won_nobody_is_asked(systemd: Systemd, facts: CgroupFacts) -> None:
    systemd.find(facts)
    systemd.answer(GIVES)
    systemd.take_place()
    assert not systemd.asked.exists()
    assert systemd.settled == [facts]


def no_bus(host: Systemd) -> None:
    (host.runtime / "bus").unlink()


def no_socket(host: Systemd) -> None:
    (host.runtime / "bus").unlink()
    (host.runtime / "bus").write_text("")
    assert stat.S_ISREG((host.runtime / "bus").stat().st_mode)


def no_systemd(host: Systemd) -> None:
    (host.root / "run/systemd/system").rmdir()


@pytest.mark.parametrize("without", [no_bus, no_socket, no_systemd])
def test_without_a_manager_we_stay_where_we_are(
    systemd: Systemd, without: Callable[[Systemd], None]
) -> None:
    systemd.find(BARE)
    systemd.answer(GIVES)
    without(systemd)
    systemd.take_place()
    assert not systemd.asked.exists()
    assert systemd.settled == []


def test_a_refusal_is_told_in_the_managers_words(systemd: Systemd) -> None:
    systemd.find(BARE)
    systemd.answer(REFUSES)
    with pytest.raises(SetupRefused, match="gives no scope: Call failed: Access denied"):
        systemd.take_place()
    assert systemd.settled == []


def test_a_promise_that_is_not_kept_is_told(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.find(BARE)
    systemd.answer("exit 0")
    monkeypatch.setattr(scope, "MOVE_PATIENCE", 0.0)
    with pytest.raises(SetupRefused, match="did not move us to casemate-"):
        systemd.take_place()


def test_a_host_without_busctl_is_told(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.find(BARE)
    monkeypatch.setenv("PATH", str(systemd.root))
    with pytest.raises(SetupRefused, match="there is no busctl"):
        systemd.take_place()
