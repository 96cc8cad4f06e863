"""Say nothing, for ever."""

from __future__ import annotations

import time
from typing import Any

KIND = "timeout.idle"
TIMEOUTS = {"idle": "500ms", "wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        time.sleep(3600)
