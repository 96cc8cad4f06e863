"""Fail with groups of exceptions, a thousand deep.

Source: our own.
"""

from __future__ import annotations

from typing import Any

KIND = "error"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    error: Exception = ValueError("bottom")
    for _ in range(1000):
        error = ExceptionGroup("group", [error])
    raise error
