"""Attach a System V memory segment of the host.

Source: System V memory knows no files (ipc_namespaces(7)).
"""

import ctypes
from typing import Any

EXPECTED = "FileNotFoundError"
SAMPLED = "OSError"  # there are none: nothing would count them
WALLS = ("ipc",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(target["segment"], 0, 0)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return segment
