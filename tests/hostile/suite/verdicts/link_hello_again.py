"""Greet as a guest a second time.

Source: a peer that speaks out of turn (h11's tables).
"""

from __future__ import annotations

from typing import Any

from casemate.protocol.limits import LINK_VERSION
from casemate.protocol.messages import Hello

from ..inside import say

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    say(Hello(version=LINK_VERSION, pid=2))
