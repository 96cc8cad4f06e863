"""Kill everybody in reach, itself last.

Source: kill(2): kill(-1).
"""

from __future__ import annotations

import os
import signal
from typing import Any

KIND = "crash"
WALLS = ("pid", "kill")


def attack(input: Any, ctx: Any) -> object:
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        ctx.log("nobody is in reach")
    os.kill(1, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)
    return "alive"
