"""Reach a server on the host's loopback over IPv6.

Source: rules that know IPv4 alone.
"""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
WALLS = ("net",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("::1", target["port6"]), timeout=5):
        return "connected"
