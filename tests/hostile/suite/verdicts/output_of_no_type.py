"""Give an output that is no value: a map whose key is an array.

Source: msgspec's documentation of what a decoder accepts; CWE-20.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.protocol.messages import Result
from msgspec import Raw

from ..inside import say
from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    say(Result(output=Raw(b"\x81\x91\x01\x02")))


def check(seen: Seen) -> None:
    require(list(seen.output) == ["undecodable"], seen.output)
