"""Reach the supervisor's event socket.

Source: a Jupyter kernel's ports, open to every process of the host.
"""

import socket
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "sockets")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(target["events"])
        return "connected"
