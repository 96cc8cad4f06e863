"""Give a file with two names as the output.

Source: what a file holds changes by its other name; CWE-62.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.write_bytes(b"\xc0")
    OUTPUT.with_name("other").hardlink_to(OUTPUT)
    claim_output(1, hashlib.sha256(b"\xc0").digest())
