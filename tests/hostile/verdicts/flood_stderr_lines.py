"""Say a million empty lines on stderr."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"
LIMITS = {"output": "64KiB"}


def attack(input: Any, ctx: Any) -> object:
    left = memoryview(b"\n" * 1_000_000)
    while left:
        left = left[os.write(2, left) :]
    return "done"


def check(seen: Seen) -> None:
    kept = seen.logged("stderr").count("\n")
    assert kept + seen.dropped("stderr") == 1_000_000
