"""Reach a server on the host's loopback.

Source: services that trust whoever reaches them on loopback (Redis, debuggers, Jupyter).
"""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
WALLS = ("net",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("127.0.0.1", target["port"]), timeout=5):
        return "connected"
