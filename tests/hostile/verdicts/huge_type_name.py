"""Fail with an exception whose type has a name of 10 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    raise type("X" * 10_000_000, (Exception,), {})("called a long name")


def check(seen: Seen) -> None:
    assert len(seen.error["type"]) <= 512
