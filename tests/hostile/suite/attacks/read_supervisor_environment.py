"""Read the supervisor's environment through /proc.

Source: secrets in /proc/<pid>/environ.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "pid")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return len(Path(f"/proc/{target['pid']}/environ").read_bytes())
