"""Give a FIFO as the output: reading it would wait for ever.

Source: fifo(7): opening one waits for its other end.
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
