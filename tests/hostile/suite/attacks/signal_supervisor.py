"""Signal the supervisor by its host pid.

Source: kill(2); Landlock scopes signals since ABI 6 for this.
"""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid", "landlock")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.kill(target["pid"], 0)
    return "reached"
