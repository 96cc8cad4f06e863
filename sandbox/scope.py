"""A delegated cgroup of our own, where systemd has one to give.

A process may set limits only below a cgroup that was handed to it. Three ways lead there on v2:

    it lies in one already, alone   `systemd-run --scope -p Delegate=yes`, a unit with Delegate=yes:
                                    it steps aside into a leaf below, so that the folder can hand
                                    controllers on (cgroup.settle)
    it lies in root's               a login session, a notebook server: the user's own manager has a
                                    delegated tree, and makes a scope around a process that already
                                    runs, with PID 1's help; then as above
    there is no such manager        nothing is moved, limits are sampled, `doctor` has the remedy

Only a process that is ours alone may be moved: a command, or the engine that an embedding program
has as its child. The embedding process itself stays where it is.

The manager is asked by busctl, which is a part of systemd: no D-Bus library, and it takes 20 ms
once in an engine's life.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import time
from pathlib import Path

from ..protocol.errors import SetupRefused
from . import cgroup

__all__ = ["take_place"]

# A manager answers in milliseconds and has moved us a few later; this is for a host under load.
ANSWER_PATIENCE = MOVE_PATIENCE = 5.0


def take_place(root: Path = Path("/")) -> None:
    """Move this process to where it can hold limits, if that takes a move and one can be had. To be
    called before it has children. Raises OSError or SetupRefused when it could not be done: then
    limits are sampled."""
    facts = cgroup.probe(root)
    if facts.settle_in is None and lacks_controllers(facts):
        bus = manager_bus(root)
        if bus is None:
            return
        ask_for_scope(bus, root)
        facts = cgroup.probe(root)
    cgroup.settle(facts, root)


def lacks_controllers(facts: cgroup.CgroupFacts) -> bool:
    return facts.hierarchy is cgroup.Hierarchy.V2 and not facts.controllers.issuperset(
        cgroup.LIMITING
    )


def manager_bus(root: Path) -> Path | None:
    """The socket by which our own systemd manager is reached; only one that is ours."""
    if not (root / "run/systemd/system").is_dir():
        return None
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}"):
        if not folder.startswith("/"):
            continue
        socket = root / folder.lstrip("/") / "bus"
        try:
            seen = socket.stat()
        except OSError:
            continue
        if stat.S_ISSOCK(seen.st_mode) and seen.st_uid == os.geteuid():
            return socket
    return None


def ask_for_scope(bus: Path, root: Path) -> None:
    """Until this process lies in a delegated scope of its own."""
    busctl = shutil.which("busctl")
    if busctl is None:
        raise SetupRefused("the user's systemd manager cannot be asked: there is no busctl")
    name = f"casemate-{os.getpid()}-{secrets.token_hex(4)}.scope"
    properties = (
        *("Description", "s", "casemate: sandboxes and what watches them"),
        *("PIDs", "au", "1", str(os.getpid())),
        *("Delegate", "b", "true"),
        *("CollectMode", "s", "inactive-or-failed"),  # a failed one is not kept to be looked at
    )
    # Name, mode, four properties, no other units.
    arguments = ("ssa(sv)a(sa(sv))", name, "fail", "4", *properties, "0")
    try:
        done = subprocess.run(
            [
                *(busctl, f"--address=unix:path={bus}", "--quiet", "call"),
                *("org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
                *("org.freedesktop.systemd1.Manager", "StartTransientUnit", *arguments),
            ],
            env={"LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupRefused("the user's systemd manager does not answer") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise SetupRefused(f"the user's systemd manager gives no scope: {said}")
    # The answer is that it will be done: the job's end is announced to who listens on the bus.
    deadline = time.monotonic() + MOVE_PATIENCE
    while not own_folder(root).endswith(f"/{name}"):
        if time.monotonic() > deadline:
            raise SetupRefused(f"the user's systemd manager did not move us to {name}")
        time.sleep(0.001)


def own_folder(root: Path) -> str:
    membership = (root / "proc/self/cgroup").read_text()
    return cgroup.parse_membership(membership).get("", "")
