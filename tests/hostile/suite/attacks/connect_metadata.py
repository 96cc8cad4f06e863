"""Ask a cloud's metadata service.

Source: Capital One, 2019: credentials from a cloud's metadata service.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("net",)


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("169.254.169.254", 80), timeout=5):
        return "connected"


def outside(target: dict[str, Any]) -> object:
    with socket.create_connection(("127.0.0.1", target["port"]), timeout=5):
        return "connected"
