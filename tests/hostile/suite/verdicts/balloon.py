"""Take all the memory there is, in one process.

Source: isolate, nsjail: the first limit of all.
"""

from __future__ import annotations

from typing import Any

KIND = "memory"
WALLS = ("limits", "rlimits")
LIMITS = {"memory": "64MiB"}


def attack(input: Any, ctx: Any) -> object:
    held = []
    while True:
        held.append(bytes([1]) * (1 << 20))


def outside() -> object:
    """A little more than its limit."""
    return len(bytes([1]) * (80 << 20))
