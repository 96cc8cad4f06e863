"""Fail with groups of exceptions, a thousand deep."""

from __future__ import annotations

from typing import Any

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    error: Exception = ValueError("bottom")
    for _ in range(1000):
        error = ExceptionGroup("group", [error])
    raise error
