"""Emit large items for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "output_limit"
LIMITS = {"output": "192MiB"}


def attack(input: Any, ctx: Any) -> object:
    item = b"x" * 500_000
    while True:
        ctx.emit(item)


def check(seen: Seen) -> None:
    assert sum(len(item) for item in seen.items) <= 192 << 20
