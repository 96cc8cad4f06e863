"""Use the kernel through its crypto sockets (AF_ALG).

Source: CVE-2019-8912, AF_ALG.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp",)


def attack(target: dict[str, Any]) -> object:
    return socket.socket(38, socket.SOCK_SEQPACKET, 0).fileno()


def outside(target: dict[str, Any]) -> object:
    # A family as little needed, which every kernel has.
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno()
