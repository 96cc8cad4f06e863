"""Hand over more bytes of artifacts than an attempt may.

Source: CWE-770.
"""

from __future__ import annotations

from typing import Any

from casemate.protocol.limits import ARTIFACTS_SIZE
from casemate.protocol.messages import Artifact

from ..inside import say

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    say(*(Artifact(name=name, size=ARTIFACTS_SIZE // 2 + 1, digest=bytes(32)) for name in "ab"))
