"""Take memory as an anonymous file that no process maps.

Source: memory that no process owns (memfd_create). Where no cgroup counts it there is none to be
had: looking would not see it.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "memory"
WALLS = ("limits",)
SAMPLED = "error"
LIMITS = {"memory": "64MiB"}


def attack(input: Any, ctx: Any) -> object:
    fd = os.memfd_create("hoard")
    return sum(os.write(fd, bytes(1 << 20)) for _ in range(96))
