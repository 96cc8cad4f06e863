"""Listen to the network (AF_PACKET)."""

import socket
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).fileno()
