"""Emit more often than it may.

Source: CWE-770; a neighbour that takes all that the journal can write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "timeout.wall"
WALLS = ("output", "clocks")
RATE = 200
LIMITS = {"event_rate": RATE, "output": "1GiB"}
TIMEOUTS = {"wall": "2s", "idle": "1s"}

# What waits in its link when it is killed has been said: a socket's buffer of items of a kilobyte.
WAITING = 1000


def attack(input: Any, ctx: Any) -> object:
    while True:
        ctx.emit("x" * 1000)


def check(seen: Seen) -> None:
    began = next(event.at for event in seen.events if event.kind == "task.started")
    lived = (seen.events[-1].at - began).total_seconds()
    allowed = RATE * (lived + 1) + WAITING
    require(len(seen.items) <= allowed, f"{len(seen.items)} items in {lived} s")
