"""Tell a result and go on talking.

Source: a peer that speaks out of turn (h11's tables).
"""

from __future__ import annotations

from typing import Any

from casemate.protocol.messages import Emit, Result
from msgspec import Raw

from ..inside import say

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    say(Result(output=Raw(b"\x01")), Emit(item=Raw(b"\x02")))
