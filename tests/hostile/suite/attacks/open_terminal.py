"""Open a terminal of its own, and through it the drivers behind.

Source: exploits of terminals begin with /dev/ptmx (CVE-2014-0196).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/ptmx").open("r+b", buffering=0).fileno()
