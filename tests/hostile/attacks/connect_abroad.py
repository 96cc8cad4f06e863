"""Reach an address beyond this host (TEST-NET-1, RFC 5737)."""

import socket
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("192.0.2.1", 80), timeout=5):
        return "connected"
