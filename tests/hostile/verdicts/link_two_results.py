"""Tell two results."""

from __future__ import annotations

from typing import Any

from casemate.protocol.messages import Result
from msgspec import Raw

from hostile.inside import say

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    say(Result(output=Raw(b"\x01")), Result(output=Raw(b"\x02")))
