"""Hand over an artifact that is not what was told.

Source: CWE-354.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    artifact_file().write_bytes(b"one")
    claim_artifact("changed", 3, hashlib.sha256(b"two").digest())
