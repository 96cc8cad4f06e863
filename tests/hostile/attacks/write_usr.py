"""Plant a program in /usr/bin."""

from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return open("/usr/bin/casemate-planted", "x").fileno()
