"""Give an output that is larger than was told.

Source: CWE-1284.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.write_bytes(b"\xc0\xc0")
    claim_output(1, hashlib.sha256(b"\xc0").digest())
