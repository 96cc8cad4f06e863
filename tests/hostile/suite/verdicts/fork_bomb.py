"""Fork until nobody may fork any more.

Source: the oldest of all.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "pids"
WALLS = ("limits", "rlimits")
# Where it is only sampled, memory that forked processes share counts for each of them.
LIMITS = {"pids": 32, "memory": "512MiB"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        os.fork()
