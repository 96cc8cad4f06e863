"""Read the environment of the sandbox's own init."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return len(Path("/proc/1/environ").read_bytes())
