"""Signal the supervisor by its host pid."""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    os.kill(target["pid"], 0)
    return "reached"
