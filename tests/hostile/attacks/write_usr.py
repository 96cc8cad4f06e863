"""Plant a program in /usr/bin."""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/usr/bin/casemate-planted").open("x").fileno()
