"""Reach a server of the host by its socket in the workspace.

Source: a docker.sock within reach; before ABI 9 Landlock lets a path's socket be connected to.
"""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
WALLS = ("layer", "net")


def attack(target: dict[str, Any]) -> object:
    return connect("/workspace/servers/socket")


def outside(target: dict[str, Any]) -> object:
    return connect(target["inner"])


def connect(path: str) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(path)
        return "connected"
