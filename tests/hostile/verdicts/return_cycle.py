"""Return a list that holds itself."""

from __future__ import annotations

from typing import Any

KIND = "invalid_output"


def attack(input: Any, ctx: Any) -> object:
    value: list[object] = []
    value.append(value)
    return value
