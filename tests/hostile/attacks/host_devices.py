"""Look at the host's hardware."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return sorted(str(path) for path in Path("/sys/class").iterdir())
