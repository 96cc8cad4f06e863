"""Use the kernel through its crypto sockets (AF_ALG).

Source: CVE-2019-8912, AF_ALG.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return socket.socket(38, socket.SOCK_SEQPACKET, 0).fileno()
