"""Read address zero.

Source: our own.
"""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "crash"
WALLS = ("kill",)


def attack(input: Any, ctx: Any) -> object:
    return ctypes.string_at(0)
