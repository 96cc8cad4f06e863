"""Read the host's password hashes; an ordinary user's twin finds them and asks their size.

Source: the first file that anybody tries.
"""

import os
from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    place = Path("/etc/shadow")
    size = place.stat().st_size
    return len(place.read_bytes()) if os.access(place, os.R_OK) else size
