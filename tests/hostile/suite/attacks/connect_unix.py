"""Reach the supervisor's control socket by its path.

Source: a docker.sock within reach.
"""

import socket
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(target["socket"])
        return "connected"
