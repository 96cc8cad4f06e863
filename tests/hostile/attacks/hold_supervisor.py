"""Take a handle of the supervisor."""

import os
from typing import Any

EXPECTED = "ProcessLookupError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return os.pidfd_open(target["pid"])
