"""Find a descriptor that nobody meant to give.

Source: CVE-2024-21626: runc leaked a descriptor to the host's /sys/fs/cgroup.
"""

import os
from pathlib import Path
from typing import Any

EXPECTED = "LookupError"
WALLS = ("descriptors",)


def attack(target: dict[str, Any]) -> object:
    # 0, 1 and 2, the link, and what libzmq makes for itself. No file of any kind, no other socket.
    sockets = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            leads_to = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if leads_to in ("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "/dev/null"):
            continue
        if leads_to.startswith("pipe:") and name in ("0", "1", "2"):
            continue
        if leads_to.startswith("/proc/") and leads_to.endswith("/fd"):
            continue  # the listing
        if leads_to.startswith("socket:"):
            sockets += 1
            continue
        return leads_to
    if sockets > 2:  # the listening end and the connected one
        return f"{sockets} sockets"
    raise LookupError("nothing else is open")


def outside(target: dict[str, Any]) -> object:
    with Path(target["secret"]).open():
        return attack(target)
