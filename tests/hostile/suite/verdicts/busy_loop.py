"""Compute for ever.

Source: LangGraph and DBOS refuse timeouts on synchronous code.
"""

from __future__ import annotations

from typing import Any

KIND = "timeout.wall"
WALLS = ("clocks", "kill")
TIMEOUTS = {"wall": "500ms"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        pass
