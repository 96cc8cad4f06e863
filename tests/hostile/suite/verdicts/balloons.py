"""Take all the memory there is, in twenty processes of which none takes much.

Source: limits of a process that twenty processes pass together (isolate's --cg).
"""

from __future__ import annotations

import os
import time
from typing import Any

KIND = "memory"
WALLS = ("limits",)
LIMITS = {"memory": "96MiB"}
TIMEOUTS = {"wall": "20s"}


def attack(input: Any, ctx: Any) -> object:
    for _ in range(20):
        if os.fork() == 0:
            held = bytes([1]) * (8 << 20)
            while held:
                time.sleep(3600)
    while True:
        time.sleep(3600)
