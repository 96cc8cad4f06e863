"""Take a handle of the supervisor.

Source: pidfd_open(2).
"""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
WALLS = ("pid",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return os.pidfd_open(target["pid"])
