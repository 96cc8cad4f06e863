"""Configure the network by netlink."""

import socket
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno()
