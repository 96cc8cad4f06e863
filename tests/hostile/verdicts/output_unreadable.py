"""Take away the supervisor's right to read the output."""

from __future__ import annotations

import hashlib
from typing import Any

from hostile.inside import OUTPUT, claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.write_bytes(b"\xc0")
    OUTPUT.chmod(0)
    OUTPUT.parent.chmod(0)
    claim_output(1, hashlib.sha256(b"\xc0").digest())
