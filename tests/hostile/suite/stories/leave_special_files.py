"""Leave setuid programs, FIFOs and sockets behind in the workspace.

Source: CVE-2021-3847's kind: a setuid file carried out by a layer; FIFOs that hang who reads them.
"""

from __future__ import annotations

import stat

from ..require import require
from ..stage import Stage

WALLS = ("layer", "apply", "user")


def attack(stage: Stage) -> str:
    socket = "import socket; socket.socket(socket.AF_UNIX).bind('socket')"
    stage.succeed(
        "run",
        stage.pipeline(
            leave=f"cp /bin/true program; chmod 6755 program; mkfifo pipe; echo good > notes; "
            f'python3 -c "{socket}" && ls -la',
        ),
    )
    layers = next(stage.state.glob("runs/*/layers"))
    left = {path.name: path.lstat().st_mode for path in layers.rglob("*")}
    require("program" in left and "notes" in left, sorted(left))
    for name, mode in left.items():
        require(stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{name} is in the layer")
        require(not mode & (stat.S_ISUID | stat.S_ISGID), f"{name} has its bits in the layer")
    stage.succeed("apply", "last", "--allow", "program")
    mode = (stage.workspace / "program").lstat().st_mode
    require(not mode & (stat.S_ISUID | stat.S_ISGID), "it was applied with its bits")
    applied = {path.name for path in stage.workspace.iterdir()}
    require(applied == {"program", "notes"}, sorted(applied))
    return "stripped"


def outside(stage: Stage) -> None:
    program = stage.workspace / "program"
    program.write_bytes(b"")
    program.chmod(0o6755)
    require(program.stat().st_mode & stat.S_ISUID, "no such bit here")
