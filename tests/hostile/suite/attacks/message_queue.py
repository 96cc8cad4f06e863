"""Reach a message queue that another process of the same user made.

Source: mq_overview(7): queues have names, not places.
"""

import ctypes
from typing import Any

EXPECTED = "FileNotFoundError"
SAMPLED = "OSError"  # there are none: nothing would count them
WALLS = ("ipc", "seccomp")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.msgget(target["queue"], 0)
    if queue < 0:
        raise OSError(ctypes.get_errno(), "msgget")
    return queue
