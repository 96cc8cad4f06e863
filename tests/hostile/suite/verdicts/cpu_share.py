"""Burn on every core at once, in more processes than there are cores.

Source: a share of the processor that each process may have is no share of a tree's (cpu.max).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "timeout.wall"
WALLS = ("limits", "clocks")
SAMPLED = None
LIMITS = {"cpu": 0.25}
TIMEOUTS = {"wall": "2s"}


def attack(input: Any, ctx: Any) -> object:
    for _ in range(7):
        if os.fork() == 0:
            break
    while True:
        pass


def check(seen: Seen) -> None:
    began = next(event.at for event in seen.events if event.kind == "task.started")
    lived = (seen.events[-1].at - began).total_seconds()
    used = seen.error["usage"]["cpu"]
    # What it used before its clock began, importing and greeting, comes on top.
    require(used <= 0.25 * lived + 0.25, f"{used} s of cpu time in {lived} s")
