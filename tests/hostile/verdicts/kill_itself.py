"""Kill itself, as the supervisor would."""

from __future__ import annotations

import os
import signal
from typing import Any

KIND = "crash"


def attack(input: Any, ctx: Any) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"
