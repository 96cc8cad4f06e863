"""Take memory as files in /dev/shm, which no process owns.

Source: memory that no process owns (tmpfs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

KIND = "memory"
WALLS = ("limits", "scratch")
SAMPLED = "disk"
LIMITS = {"memory": "64MiB", "tmp": "128MiB"}


def attack(input: Any, ctx: Any) -> object:
    with Path("/dev/shm/file").open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
