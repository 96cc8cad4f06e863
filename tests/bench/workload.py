"""What the benchmark's tasks do."""

from __future__ import annotations

from typing import Any


def nothing(input: Any, ctx: Any) -> None:
    return None


def emit(input: Any, ctx: Any) -> None:
    item = "x" * ctx.spec["size"]
    for _ in range(ctx.spec["count"]):
        ctx.emit(item)


def spin(input: Any, ctx: Any) -> None:
    while True:
        pass
