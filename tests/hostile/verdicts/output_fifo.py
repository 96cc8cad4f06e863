"""Give a FIFO as the output: reading it would wait for ever."""

from __future__ import annotations

import os
from typing import Any

from hostile.inside import OUTPUT, claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    os.mkfifo(OUTPUT)
    claim_output(100)
