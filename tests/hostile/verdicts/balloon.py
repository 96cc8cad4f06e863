"""Take all the memory there is, in one process."""

from __future__ import annotations

from typing import Any

KIND = "memory"
LIMITS = {"memory": "64MiB"}


def attack(input: Any, ctx: Any) -> object:
    held = []
    while True:
        held.append(bytes([1]) * (1 << 20))
