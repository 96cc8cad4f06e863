"""Pass descriptors to the supervisor, which has only so many.

Source: SCM_RIGHTS, unix(7): descriptors sent to one who does not ask for them.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

from ..inside import find_link, frame
from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("link",)


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
    require(seen.items, "nothing was said")
