"""Fail with a message of 10 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    raise ValueError("x" * 10_000_000)


def check(seen: Seen) -> None:
    assert len(seen.error["message"]) <= 16 << 10
