"""Run where the filter of system calls cannot be put on.

Source: firejail#2718 (CVE-2019-12589): a filter that was not there, and a program that ran.
"""

from __future__ import annotations

import errno

from ..require import require
from ..stage import Stage

WALLS = ("plan", "posture")


def attack(stage: Stage) -> str:
    done = stage.lying({"seccomp": errno.EINVAL}, "echo", "it ran")
    require(done.stdout == "", "it ran")
    require(done.returncode == 125, f"exit code {done.returncode}")
    require("seccomp" in done.stderr, done.stderr)
    return "setup"
