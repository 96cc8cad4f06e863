"""Look at the host's hardware.

Source: mknod(1) and disks within a container, as `docker --privileged` gives them.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return sorted(str(path) for path in Path("/sys/class").iterdir())
