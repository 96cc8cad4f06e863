"""Attacks with nothing around them, as the user who asks: there they must succeed.

Nothing runs outside unless its file says so: `RUNS_OUTSIDE = True`, or a milder twin, `outside()`,
that is run in its place: one fork instead of a bomb, a mount in a namespace that is thrown away.
One that an ordinary user's kernel refuses anyway names in `NEEDS` the capability without which it
does.

All of them run in one interpreter of their own that forks for each, with the supervisor's
environment, each with a copy of the workspace. Under root that interpreter has a mount namespace of
its own: a mistake in an attack's file must not end as a mount on the host. This file is both sides:
`run_outside`, and `main` in that interpreter.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import inspect
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .attack import Attack, Kind
from .target import Target

__all__ = ["PATIENCE", "SUCCEEDS", "can_run_outside", "explain", "main", "run_outside"]

SUCCEEDS = "succeeds"
LACKING = "this kernel has no such call"

# Only turns a hang into a failure.
PATIENCE = 60.0

_CODE = (
    "import sys; sys.path[:0] = {path!r}; "
    "from importlib import import_module; import_module({module!r}).main()"
)

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

# include/uapi/linux/capability.h
CAPABILITIES = {
    "mknod": 27,
    "net_admin": 12,
    "net_raw": 13,
    "sys_admin": 21,
    "sys_boot": 22,
    "sys_chroot": 18,
    "sys_module": 16,
    "sys_nice": 23,
    "sys_pacct": 20,
    "sys_ptrace": 19,
    "sys_rawio": 17,
    "sys_time": 25,
    "setfcap": 31,
    "setuid": 7,
    "syslog": 34,
    "dac_read_search": 2,
}


def can_run_outside(attack: Attack) -> bool:
    """By its own word alone."""
    return hasattr(attack.module, "outside") or getattr(attack.module, "RUNS_OUTSIDE", False)


def run_outside(attacks: Iterable[Attack], target: Target) -> dict[str, str]:
    """By name, `succeeds` or the error that each ended with."""
    chosen = [(str(attack.kind), attack.name, attack.module.__name__) for attack in attacks]
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(path=sys.path, module=__name__)],
        input=json.dumps({"attacks": chosen, "target": target.input}),
        env={**os.environ, **target.environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


def explain(attack: Attack, answer: str) -> str:
    """The answer, or why it could be no other here."""
    ours = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    needed = getattr(attack.module, "NEEDS", None)
    if needed is not None and not int(ours["CapEff"], 16) >> CAPABILITIES[needed] & 1:
        return f"takes {needed}" if answer != SUCCEEDS else answer
    if f"[Errno {errno.ENOSYS}]" in answer and ours["Seccomp"] == "0":
        return LACKING
    return answer


def main() -> None:
    request = json.load(sys.stdin)
    if os.geteuid() == 0:
        leave_mounts_alone()
    answers = {}
    workspace = Path(request["target"]["workspace"])
    for kind, name, module in request["attacks"]:
        attack = Attack(Kind(kind), name, importlib.import_module(module))
        copy = workspace.with_name(f"workspace-{name}")
        shutil.copytree(workspace, copy, ignore=shutil.ignore_patterns("socket"))
        answers[name] = _alone(attack, request["target"] | {"workspace": str(copy)})
    print(json.dumps(answers))


def leave_mounts_alone() -> None:
    """From here on, what we mount or unmount is seen by nobody else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace of its own")


def _alone(attack: Attack, target: dict[str, Any]) -> str:
    """In a child of our own, from which it cannot disturb the others; what it started dies too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        try:
            _attempt(attack, target)
            said = SUCCEEDS
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode(errors="replace")[: select.PIPE_BUF])
        os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], PATIENCE)
        return (os.read(reader, select.PIPE_BUF).decode() or "dies") if ready else "hangs"
    finally:
        os.close(reader)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _attempt(attack: Attack, target: dict[str, Any]) -> None:
    run = getattr(attack.module, "outside", None) or attack.module.attack
    if inspect.signature(run).parameters:
        run(target)
    else:
        run()
