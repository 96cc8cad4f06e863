"""Open files until there is no descriptor left.

Source: getrlimit(2).
"""

from __future__ import annotations

import os
from typing import Any

KIND = "error"
WALLS = ("rlimits",)
LIMITS = {"files": 64}


def attack(input: Any, ctx: Any) -> object:
    while True:
        os.open("/dev/null", os.O_RDONLY)


def outside() -> object:
    """More of them than its limit."""
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
