"""One file larger than any may be.

Source: sparse files of a terabyte.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

KIND = "disk"
WALLS = ("rlimits",)
LIMITS = {"disk": "1MiB"}


def attack(input: Any, ctx: Any) -> object:
    with Path("/tmp/file").open("wb") as file:
        file.truncate(1 << 40)
    return "made"


def outside() -> object:
    """Beyond its limit, if not by as much."""
    with tempfile.TemporaryFile() as file:
        return file.truncate(1 << 22)
