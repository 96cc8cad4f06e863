"""Read the supervisor's state directory.

Source: our own: other runs' files, inputs and outputs.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return sorted(path.name for path in Path(target["state"]).iterdir())
