"""Fork until nobody may fork any more.

Source: the oldest of all.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..inside import a_child

KIND = "pids"
WALLS = ("limits", "rlimits")
# Where it is only sampled, memory that forked processes share counts for each of them.
LIMITS = {"pids": 32, "memory": "512MiB"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        os.fork()


def outside() -> object:
    """More of them than its limit."""
    children = []
    with contextlib.ExitStack() as alive:
        for _ in range(40):
            children.append(alive.enter_context(a_child()))
    return len(children)
