"""Read the supervisor's state directory."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return sorted(path.name for path in Path(target["state"]).iterdir())
