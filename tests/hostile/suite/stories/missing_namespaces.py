"""Run where the kernel gives no namespaces.

Source: bubblewrap#632, nsjail#236, codex#15057: hosts that refuse them, and what is made of it.
"""

from __future__ import annotations

import errno

from ..require import require
from ..stage import Stage

WALLS = ("plan",)


def attack(stage: Stage) -> str:
    done = stage.lying({"unshare": errno.EPERM}, "echo", "it ran")
    require(done.stdout == "", "it ran")
    require(done.returncode == 125, f"exit code {done.returncode}")
    require("unshare" in done.stderr, done.stderr)
    return "setup"
