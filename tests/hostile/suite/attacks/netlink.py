"""Configure the network by netlink.

Source: CVE-2023-32233, nf_tables by netlink.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno()
