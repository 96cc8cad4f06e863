"""Open a terminal of its own, and through it the drivers behind.

Source: CVE-2020-8835's road and most tty exploits begin with /dev/ptmx.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/ptmx").open("r+b", buffering=0).fileno()
