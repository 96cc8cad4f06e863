"""Burn the processor in four children at once.

Source: isolate: time of a whole group.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "timeout.cpu"
WALLS = ("clocks", "limits")
TIMEOUTS = {"cpu": "500ms", "wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    for _ in range(4):
        if os.fork() == 0:
            while True:
                pass
    os.wait()
    return None
