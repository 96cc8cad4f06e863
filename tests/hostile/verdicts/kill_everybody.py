"""Kill everybody in reach, itself last."""

from __future__ import annotations

import os
import signal
from typing import Any

KIND = "crash"


def attack(input: Any, ctx: Any) -> object:
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        ctx.log("nobody is in reach")
    os.kill(1, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)
    return "alive"
