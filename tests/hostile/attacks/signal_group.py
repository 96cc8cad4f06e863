"""Signal the supervisor's process group."""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.killpg(target["group"], 0)
    return "reached"
