"""Reach the supervisor's control socket.

Source: a docker.sock within reach.
"""

import socket
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "sockets")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(target["control"])
        return "connected"
