"""Reach a UDP server on the host's loopback, and be answered.

Source: rules that know TCP alone, as Landlock's do before ABI 10.
"""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
WALLS = ("net",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.settimeout(5)
        out.connect(("127.0.0.1", target["udp"]))
        out.send(b"hello")
        return out.recv(10).decode()
