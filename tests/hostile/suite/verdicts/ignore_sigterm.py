"""Ignore the request to end.

Source: timeouts that kill one process and leave the rest (inspect_ai#2779, codex#5229,
daytona#4230).
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

KIND = "timeout.wall"
WALLS = ("kill", "clocks")
TIMEOUTS = {"wall": "300ms", "grace": "300ms"}


def attack(input: Any, ctx: Any) -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def outside() -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)
    return "alive"
