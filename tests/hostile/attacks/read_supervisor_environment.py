"""Read the supervisor's environment through /proc."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return len(Path(f"/proc/{target['pid']}/environ").read_bytes())
