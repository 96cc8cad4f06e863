"""Return a hundred thousand lists within each other.

Source: CWE-674: stacks that overflow in a decoder.
"""

from __future__ import annotations

from typing import Any

KIND = "invalid_output"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value
