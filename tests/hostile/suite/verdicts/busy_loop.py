"""Compute for ever.

Source: LangGraph and DBOS refuse timeouts on synchronous code.
"""

from __future__ import annotations

import time
from typing import Any

KIND = "timeout.wall"
WALLS = ("clocks", "kill")
TIMEOUTS = {"wall": "500ms"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        pass


def outside() -> object:
    """A little longer than its limit."""
    until = time.monotonic() + 0.55
    while time.monotonic() < until:
        pass
    return "computed"
