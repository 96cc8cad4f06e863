"""Reach an address beyond this host (TEST-NET-1, RFC 5737).

Source: exfiltration by agents: the reason for srt's and codex's network rules.
"""

import socket
from typing import Any

EXPECTED = "OSError"
WALLS = ("net",)
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    with socket.create_connection(("192.0.2.1", 80), timeout=5):
        return "connected"
