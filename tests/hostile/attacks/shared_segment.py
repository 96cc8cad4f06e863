"""Attach a System V memory segment of the host."""

import ctypes
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(target["segment"], 0, 0)
    if segment < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return segment
