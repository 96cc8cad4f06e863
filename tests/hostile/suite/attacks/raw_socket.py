"""Make packets by hand (ICMP).

Source: CVE-2020-13401: CAP_NET_RAW in a container.
"""

import socket
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "net_raw"


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).fileno()
