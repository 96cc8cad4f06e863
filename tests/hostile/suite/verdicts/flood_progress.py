"""Tell of progress as often as it can.

Source: CWE-400; agents that print without end (evalscope#1685).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("output",)


def attack(input: Any, ctx: Any) -> object:
    until = time.monotonic() + 0.5
    told = 0
    while time.monotonic() < until or told < 1000:
        told += 1
        ctx.progress(told)
    return told


def check(seen: Seen) -> None:
    told = seen.data("task.progress")
    require(told[-1]["done"] == seen.output, "the last one was not told")
    require(len(told) < 100, f"{len(told)} were told")
