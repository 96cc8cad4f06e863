"""Connect to its own link a second time, as somebody else.

Source: ROUTER identities that can be claimed (libzmq).
"""

import os
import socket
from typing import Any

from ..inside import find_listener

EXPECTED = "FileNotFoundError"
WALLS = ("link", "mount")


def attack(target: dict[str, Any]) -> object:
    with socket.socket(fileno=os.dup(find_listener())) as listener:
        path = listener.getsockname()
    return connect(path)


def outside(target: dict[str, Any]) -> object:
    return connect(target["socket"])


def connect(path: str) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(path)
        return "connected"
