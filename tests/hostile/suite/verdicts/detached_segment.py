"""Take memory as System V segments that no process is attached to.

Source: memory that no process owns (shmget). Where no cgroup counts it there is none to be had:
looking would not see it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "memory"
WALLS = ("limits",)
SAMPLED = "error"
LIMITS = {"memory": "64MiB"}

SIZE = 8 << 20


def attack(input: Any, ctx: Any) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    for _ in range(12):
        segment = libc.shmget(0, SIZE, 0o1600)  # IPC_PRIVATE, IPC_CREAT
        if segment < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        place = libc.shmat(segment, None, 0)
        ctypes.memset(place, 1, SIZE)
        libc.shmdt(ctypes.c_void_p(place))
    return "taken"
