"""Say nothing, for ever.

Source: timeouts that kill one process and leave the rest (inspect_ai#2779, codex#5229,
daytona#4230).
"""

from __future__ import annotations

import time
from typing import Any

KIND = "timeout.idle"
WALLS = ("clocks", "kill")
TIMEOUTS = {"idle": "500ms", "wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        time.sleep(3600)


def outside() -> object:
    """A little longer than its limit."""
    time.sleep(0.55)
    return "slept"
