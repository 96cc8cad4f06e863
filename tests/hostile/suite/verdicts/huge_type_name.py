"""Fail with an exception whose type has a name of 10 MB.

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
    raise type("X" * 10_000_000, (Exception,), {})("called a long name")


def check(seen: Seen) -> None:
    require(len(seen.error["type"]) <= 512, "a longer name than may be")
