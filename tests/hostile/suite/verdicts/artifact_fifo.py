"""Plant a FIFO where an artifact is to lie: reading it would wait for ever.

Source: fifo(7): opening one waits for its other end.
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
