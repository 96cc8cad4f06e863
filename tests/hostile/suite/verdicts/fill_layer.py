"""Write to the workspace until it is full.

Source: CWE-400; a checkout that grows until the host has no room.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

KIND = "disk"
WALLS = ("limits", "layer", "rlimits")
LIMITS = {"disk": "8MiB"}


def attack(input: Any, ctx: Any) -> object:
    number = 0
    while True:
        # Each by itself small enough; together they are not.
        Path(ctx.workspace, f"file{number}").write_bytes(bytes(1 << 20))
        number += 1


def outside() -> object:
    """More than its limit."""
    with tempfile.TemporaryFile() as file:
        return file.write(bytes(9 << 20))
