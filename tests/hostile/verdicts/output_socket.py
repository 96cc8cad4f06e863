"""Give a socket as the output."""

from __future__ import annotations

import socket
from typing import Any

from hostile.inside import OUTPUT, claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(str(OUTPUT))
    claim_output(100)
