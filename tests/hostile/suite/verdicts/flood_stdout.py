"""Say 64 MiB on stdout, without a line end.

Source: CWE-400; agents that print without end (evalscope#1685).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("output",)
LIMITS = {"output": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    piece = b"x" * (1 << 20)
    for _ in range(64):
        left = memoryview(piece)
        while left:
            left = left[os.write(1, left) :]
    return "done"


def check(seen: Seen) -> None:
    kept = len(seen.logged("stdout"))
    require(kept == 1 << 20, f"{kept} bytes were kept")
    require(seen.dropped("stdout") == (64 << 20) - kept, "what was dropped was not counted")
