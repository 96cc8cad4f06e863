"""Emit large items for ever.

Source: slow consumers: queues that grow in the one who reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "output_limit"
WALLS = ("link", "output")
TIMEOUTS = {"wall": "5m"}  # an emulated processor needs more than one
LIMITS = {"output": "192MiB"}


def attack(input: Any, ctx: Any) -> object:
    item = b"x" * 500_000
    while True:
        ctx.emit(item)


def check(seen: Seen) -> None:
    require(sum(len(item) for item in seen.items) <= 192 << 20, "more items than were said")
