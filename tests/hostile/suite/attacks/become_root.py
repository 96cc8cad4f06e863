"""Become uid 0.

Source: setuid(2), the first line of any exploit's payload.
"""

import os
from typing import Any

EXPECTED = "OSError"
WALLS = ("user", "capabilities", "seccomp")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    os.setuid(0)
    return os.getuid()
