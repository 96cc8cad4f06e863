"""Reach a server on the host's loopback over IPv6."""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("::1", target["port6"]), timeout=5):
        return "connected"
