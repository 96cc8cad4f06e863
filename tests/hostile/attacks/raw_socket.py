"""Make packets by hand (ICMP)."""

import socket
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).fileno()
