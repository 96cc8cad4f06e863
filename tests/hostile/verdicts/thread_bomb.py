"""Start threads until nobody may start any more."""

from __future__ import annotations

import threading
import time
from typing import Any

KIND = "pids"
LIMITS = {"pids": 32}


def attack(input: Any, ctx: Any) -> object:
    while True:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
