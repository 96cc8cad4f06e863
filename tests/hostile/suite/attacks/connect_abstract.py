"""Reach an abstract unix socket of the host.

Source: CVE-2020-15257: containerd's shim listened on an abstract socket.
"""

import socket
from typing import Any

EXPECTED = "ConnectionRefusedError"
WALLS = ("net", "landlock")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_UNIX) as out:
        out.connect("\0" + target["abstract"])
        return "connected"
