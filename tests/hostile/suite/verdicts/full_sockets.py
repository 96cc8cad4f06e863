"""Take memory as what waits in sockets that nobody reads.

Source: kernel memory that a process is charged for (af_unix's buffers, since Linux 4.8). Where no
cgroup counts it, looking does not see it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

KIND = "memory"
WALLS = ("limits",)
SAMPLED = None
LIMITS = {"memory": "48MiB", "files": 1024}


def attack(input: Any, ctx: Any) -> object:
    held = []
    for _ in range(400):
        held.append(socket.socketpair())
        ours, _theirs = held[-1]
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
    return len(held)
