"""Give a socket as the output.

Source: what is taken back is a regular file, or nothing.
"""

from __future__ import annotations

import socket
from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(str(OUTPUT))
    claim_output(100)
