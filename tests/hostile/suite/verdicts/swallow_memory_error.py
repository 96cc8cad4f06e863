"""Take memory, and go on when told that there is none.

Source: `except MemoryError: continue`.
"""

from __future__ import annotations

from typing import Any

KIND = "memory"
WALLS = ("limits", "rlimits")
SAMPLED = "timeout.wall"
LIMITS = {"memory": "64MiB"}
TIMEOUTS = {"wall": "5s"}


def attack(input: Any, ctx: Any) -> object:
    held = []
    while True:
        try:
            while True:
                held.append(bytes([1]) * (1 << 20))
        except MemoryError:
            pass
