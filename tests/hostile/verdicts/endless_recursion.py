"""Recurse in Python."""

from __future__ import annotations

from typing import Any

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    return attack(input, ctx)
