"""Reach a server on the host's loopback."""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("127.0.0.1", target["port"]), timeout=5):
        return "connected"
