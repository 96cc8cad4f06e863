"""Recurse in Python.

Source: our own.
"""

from __future__ import annotations

from typing import Any

KIND = "error"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    return attack(input, ctx)
