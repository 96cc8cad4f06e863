"""Ignore the request to end."""

from __future__ import annotations

import signal
import time
from typing import Any

KIND = "timeout.wall"
TIMEOUTS = {"wall": "300ms", "grace": "300ms"}


def attack(input: Any, ctx: Any) -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)
