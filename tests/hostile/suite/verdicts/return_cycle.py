"""Return a list that holds itself.

Source: our own.
"""

from __future__ import annotations

from typing import Any

KIND = "invalid_output"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    value: list[object] = []
    value.append(value)
    return value
