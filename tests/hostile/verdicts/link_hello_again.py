"""Greet as a guest a second time."""

from __future__ import annotations

from typing import Any

from casemate.protocol.limits import LINK_VERSION
from casemate.protocol.messages import Hello

from hostile.inside import say

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    say(Hello(version=LINK_VERSION, pid=2))
