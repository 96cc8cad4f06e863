"""Start threads until nobody may start any more.

Source: threads count as processes (pids.max).
"""

from __future__ import annotations

import threading
import time
from typing import Any

KIND = "pids"
WALLS = ("limits", "rlimits")
LIMITS = {"pids": 32}


def attack(input: Any, ctx: Any) -> object:
    while True:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def outside() -> object:
    """More of them than its limit."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(40)]
    for thread in threads:
        thread.start()
    over.set()
    return len(threads)
