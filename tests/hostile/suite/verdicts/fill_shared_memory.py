"""Write to /dev/shm until it is full.

Source: memory that no process owns (tmpfs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

KIND = "disk"
WALLS = ("scratch",)
LIMITS = {"tmp": "8MiB"}


def attack(input: Any, ctx: Any) -> object:
    with Path("/dev/shm/file").open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
