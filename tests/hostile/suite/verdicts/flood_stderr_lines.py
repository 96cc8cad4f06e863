"""Say a million empty lines on stderr.

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
LIMITS = {"output": "64KiB"}


def attack(input: Any, ctx: Any) -> object:
    left = memoryview(b"\n" * 1_000_000)
    while left:
        left = left[os.write(2, left) :]
    return "done"


def check(seen: Seen) -> None:
    kept = seen.logged("stderr").count("\n")
    require(kept + seen.dropped("stderr") == 1_000_000, "what was dropped was not counted")
