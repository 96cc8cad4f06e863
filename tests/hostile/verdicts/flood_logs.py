"""Log for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"
LIMITS = {"output": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    for _ in range(20_000):
        ctx.log("x" * 1000, field="y")
    return "done"


def check(seen: Seen) -> None:
    assert len(seen.logged("log")) <= 1 << 20
    assert seen.dropped("log") > 15_000_000
