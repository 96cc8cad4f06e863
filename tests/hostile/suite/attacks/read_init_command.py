"""Read what the sandbox's init was started with.

Source: passwords on command lines, /proc/<pid>/cmdline.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/1/cmdline").read_text()
