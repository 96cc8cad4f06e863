"""Write to /tmp until it is full.

Source: CWE-400.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

KIND = "disk"
WALLS = ("scratch",)
LIMITS = {"tmp": "8MiB"}


def attack(input: Any, ctx: Any) -> object:
    with Path("/tmp/file").open("wb") as file:
        while True:
            file.write(bytes(1 << 20))


def outside() -> object:
    """More than its limit."""
    with tempfile.TemporaryFile() as file:
        return file.write(bytes(9 << 20))
