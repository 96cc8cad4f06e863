"""Speak to the hypervisor (AF_VSOCK)."""

import socket
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return socket.socket(40, socket.SOCK_STREAM).fileno()
