"""Shield itself from the kernel's out-of-memory killer, so that it takes another.

Source: a hog that has another killed in its place (proc(5)).
"""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("proc", "capabilities")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/oom_score_adj").write_text("-1000")
