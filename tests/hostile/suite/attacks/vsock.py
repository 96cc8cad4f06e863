"""Speak to the hypervisor (AF_VSOCK).

Source: CVE-2021-26708; before Linux 7.0 no namespace held AF_VSOCK, nor does bwrap --unshare-
all.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp",)


def attack(target: dict[str, Any]) -> object:
    return socket.socket(40, socket.SOCK_STREAM).fileno()


def outside(target: dict[str, Any]) -> object:
    # A family as little needed, which every kernel has.
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).fileno()
