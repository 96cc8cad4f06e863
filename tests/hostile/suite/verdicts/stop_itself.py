"""Stop, so that nothing of it could ever answer.

Source: SIGSTOP: alive, and silent.
"""

from __future__ import annotations

import os
import signal
from typing import Any

KIND = "timeout.wall"
WALLS = ("clocks", "kill")
TIMEOUTS = {"wall": "500ms"}


def attack(input: Any, ctx: Any) -> object:
    os.kill(os.getpid(), signal.SIGSTOP)
    return "continued"
