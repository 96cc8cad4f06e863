"""Read the kernel's log.

Source: kernel addresses out of dmesg (dmesg_restrict).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True
NEEDS = "syslog"


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/kmsg").open("rb").fileno()
