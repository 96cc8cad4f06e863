"""Return a hundred thousand lists within each other."""

from __future__ import annotations

from typing import Any

KIND = "invalid_output"


def attack(input: Any, ctx: Any) -> object:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value
