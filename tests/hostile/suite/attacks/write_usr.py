"""Plant a program in /usr/bin.

Source: agents that install over the host's files.
"""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("mount", "landlock")


def attack(target: dict[str, Any]) -> object:
    return Path("/usr/bin/casemate-planted").open("x").fileno()


def outside(target: dict[str, Any]) -> object:
    return Path(target["workspace"], "casemate-planted").open("x").fileno()
