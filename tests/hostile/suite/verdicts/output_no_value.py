"""Give bytes that would break whatever they are put into.

Source: CWE-20.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    value = b"\x01\xa5other\x02"  # one value, and what would follow it in a map
    OUTPUT.write_bytes(value)
    claim_output(len(value), hashlib.sha256(value).digest())
