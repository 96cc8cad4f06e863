"""Emit nothing, very often.

Source: a cap on bytes that a million empty items pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "output_limit"
WALLS = ("output",)
LIMITS = {"output": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        ctx.emit(None)


def check(seen: Seen) -> None:
    # What an event weighs beside its item counts as well.
    require(len(seen.items) <= (1 << 20) / 32, f"{len(seen.items)} items")
