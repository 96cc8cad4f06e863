"""Pass descriptors to the supervisor, which has only so many."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from hostile.inside import find_link, frame

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    null = os.open("/dev/null", os.O_RDONLY)
    passed = array.array("i", [null] * 200)
    item = frame(b"\x04\x81\xa4item\x01")
    with socket.socket(fileno=os.dup(find_link())) as link:
        for _ in range(50):
            # Full, or more under way than the kernel allows (ETOOMANYREFS).
            with contextlib.suppress(OSError):
                link.sendmsg([item], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
    return "done"


def check(seen: Seen) -> None:
    assert seen.items
