"""Change a setting of the kernel.

Source: CVE-2025-31133, runc; /proc/sys in containers.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "mount")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/sys/kernel/domainname").open("r+").fileno()
