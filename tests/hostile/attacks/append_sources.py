"""Change the task's own sources, which other attempts will load."""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    with Path(__file__).open("a") as file:
        return file.write("")
