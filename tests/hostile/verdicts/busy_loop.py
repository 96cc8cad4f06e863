"""Compute for ever."""

from __future__ import annotations

from typing import Any

KIND = "timeout.wall"
TIMEOUTS = {"wall": "500ms"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        pass
