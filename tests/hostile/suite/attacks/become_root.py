"""Become uid 0.

Source: setuid(2), the first line of any exploit's payload.
"""

import os
from typing import Any

EXPECTED = "OSError"
WALLS = ("user", "capabilities", "seccomp")
RUNS_OUTSIDE = True
NEEDS = "setuid"


def attack(target: dict[str, Any]) -> object:
    os.setuid(0)
    return os.getuid()
