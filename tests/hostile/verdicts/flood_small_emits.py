"""Emit nothing, very often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "output_limit"
LIMITS = {"output": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        ctx.emit(None)


def check(seen: Seen) -> None:
    # What an event weighs beside its item counts as well.
    assert len(seen.items) <= (1 << 20) / 32
