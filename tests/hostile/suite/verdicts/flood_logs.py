"""Log for ever.

Source: CWE-400; agents that print without end (evalscope#1685).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("output",)
LIMITS = {"output": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    for _ in range(20_000):
        ctx.log("x" * 1000, field="y")
    return "done"


def check(seen: Seen) -> None:
    require(len(seen.logged("log")) <= 1 << 20, "more was kept than the cap allows")
    require(seen.dropped("log") > 15_000_000, "what was dropped was not counted")
