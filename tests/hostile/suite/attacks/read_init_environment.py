"""Read the environment of the sandbox's own init.

Source: secrets in /proc/1/environ.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return len(Path("/proc/1/environ").read_bytes())
