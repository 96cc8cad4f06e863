"""Plant a FIFO where an artifact is to lie: reading it would wait for ever.

Source: the same; CWE-367.
"""

from __future__ import annotations

import os
from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    os.mkfifo(artifact_file())
    claim_artifact("pipe", 100)
