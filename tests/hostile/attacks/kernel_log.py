"""Read the kernel's log."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/kmsg").open("rb").fileno()
