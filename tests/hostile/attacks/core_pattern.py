"""Have the host run a program at the next crash (core_pattern)."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/sys/kernel/core_pattern").read_text()
