"""Dirty more page cache than there is memory for: it is written out and taken back, and what the
task is charged with never passes its limit.

Source: the memory controller counts page cache (cgroup-v2.rst, memory.current).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("limits",)
SAMPLED = None
LIMITS = {"memory": "48MiB", "disk": "256MiB"}
TIMEOUTS = {"wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    with Path("large").open("wb") as file:
        for _ in range(96):
            file.write(bytes(1 << 20))
    time.sleep(2.5)  # the host looks once a second
    return None


def check(seen: Seen) -> None:
    used = [told["memory"] or 0 for told in seen.data("task.usage")]
    # Nothing else of it comes to that much, so its cache was counted.
    require(used and 32 << 20 <= max(used) <= 48 << 20, f"{used} bytes were charged")
