"""What well-behaved tasks do beside and after the attacks."""

from __future__ import annotations

from typing import Any

ITEMS = 20


def work(input: Any, ctx: Any) -> object:
    """Say something on every channel, and return."""
    for number in range(ITEMS):
        ctx.emit(number)
    print("working")
    ctx.progress(1, 1)
    return {"sum": sum(range(ITEMS))}
