"""Give an output that is not what was told.

Source: CWE-354.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.write_bytes(b"\xc0")
    claim_output(1, hashlib.sha256(b"\xc1").digest())
