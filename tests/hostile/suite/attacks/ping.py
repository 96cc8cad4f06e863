"""Send out secrets as echo requests.

Source: exfiltration by ICMP; socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP) needs no capability
where net.ipv4.ping_group_range says so.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("seccomp", "net")


def attack(target: dict[str, Any]) -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).fileno()


def outside(target: dict[str, Any]) -> object:
    # As any of the kind: which groups may send echo requests is a setting of the host's.
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP).fileno()
