"""Tell a result and go on talking."""

from __future__ import annotations

from typing import Any

from casemate.protocol.messages import Emit, Result
from msgspec import Raw

from hostile.inside import say

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    say(Result(output=Raw(b"\x01")), Emit(item=Raw(b"\x02")))
