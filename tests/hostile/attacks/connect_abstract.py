"""Reach an abstract unix socket of the host."""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect("\0" + target["abstract"])
        return "connected"
