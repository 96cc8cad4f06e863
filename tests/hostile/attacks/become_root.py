"""Become uid 0."""

import os
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    os.setuid(0)
    return os.getuid()
