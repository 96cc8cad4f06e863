"""Hand over more artifacts than an attempt may.

Source: CWE-770.
"""

from __future__ import annotations

import hashlib
from typing import Any

from casemate.protocol.limits import ARTIFACTS
from casemate.protocol.messages import Artifact

from ..inside import artifact_file, say

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    digest = hashlib.sha256(b"").digest()
    numbers = range(1, ARTIFACTS + 2)
    for number in numbers:
        artifact_file(number).touch()
    say(*(Artifact(name=str(number), size=0, digest=digest) for number in numbers))
