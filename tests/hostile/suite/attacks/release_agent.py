"""Have the kernel run a program when a cgroup empties.

Source: CVE-2022-0492.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "cgroup")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return sorted(str(path) for path in Path("/sys/fs/cgroup").iterdir())
