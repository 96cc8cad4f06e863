"""Have its memory swapped out as it grows, so that it never counts.

Source: isolate: memory limits that swap defeats.
"""

from __future__ import annotations

import mmap
from typing import Any

KIND = "memory"
WALLS = ("limits", "rlimits")
SAMPLED = "error"  # RLIMIT_DATA refuses it first
LIMITS = {"memory": "64MiB"}

_MADV_PAGEOUT = 21


def attack(input: Any, ctx: Any) -> object:
    held = []
    while True:
        piece = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece.write(bytes([1]) * (4 << 20))
        piece.madvise(_MADV_PAGEOUT)
        held.append(piece)
