"""Listen to the network (AF_PACKET).

Source: CVE-2020-14386, CVE-2017-7308.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp", "capabilities", "net")
RUNS_OUTSIDE = True
NEEDS = "net_raw"


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).fileno()
