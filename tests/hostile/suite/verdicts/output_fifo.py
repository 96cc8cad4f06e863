"""Give a FIFO as the output: reading it would wait for ever.

Source: SandboxFusion joined what it took back unchecked; CWE-59.
"""

from __future__ import annotations

import os
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    os.mkfifo(OUTPUT)
    claim_output(100)
