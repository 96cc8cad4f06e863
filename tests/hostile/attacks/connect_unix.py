"""Reach the supervisor's control socket by its path."""

import socket
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(target["socket"])
        return "connected"
