"""Tell of progress as often as it can."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    until = time.monotonic() + 0.5
    told = 0
    while time.monotonic() < until or told < 1000:
        told += 1
        ctx.progress(told)
    return told


def check(seen: Seen) -> None:
    told = seen.data("task.progress")
    assert told[-1]["done"] == seen.output
    assert len(told) < 100
