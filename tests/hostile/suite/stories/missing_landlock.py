"""Run where the kernel has no Landlock.

Source: claude-code#81421; a host that lacks a wall, and a sandbox that does without.
"""

from __future__ import annotations

import errno

from ..require import require
from ..stage import Stage

WALLS = ("plan",)


def attack(stage: Stage) -> str:
    done = stage.lying({"landlock_create_ruleset": errno.ENOSYS}, "echo", "it ran")
    require(done.stdout == "", "it ran")
    require(done.returncode == 125, f"exit code {done.returncode}")
    require("landlock" in done.stderr.lower(), done.stderr)
    return "setup"
