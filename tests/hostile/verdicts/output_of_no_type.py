"""Give an output that is no value: a map whose key is an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.protocol.messages import Result
from msgspec import Raw

from hostile.inside import say

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    say(Result(output=Raw(b"\x81\x91\x01\x02")))


def check(seen: Seen) -> None:
    assert list(seen.output) == ["undecodable"]
