"""Fail with a message of 10 MB.

Source: CWE-400.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "error"
WALLS = ("output",)


def attack(input: Any, ctx: Any) -> object:
    raise ValueError("x" * 10_000_000)


def check(seen: Seen) -> None:
    require(len(seen.error["message"]) <= 16 << 10, "a longer message than may be")
