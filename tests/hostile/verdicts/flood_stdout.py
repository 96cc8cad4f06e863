"""Say 64 MiB on stdout, without a line end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"
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
    assert kept == 1 << 20
    assert seen.dropped("stdout") == (64 << 20) - kept
