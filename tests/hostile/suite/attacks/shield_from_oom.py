"""Shield itself from the kernel's out-of-memory killer, so that it takes another.

Source: a hog that has another killed in its place (proc(5)).
"""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("proc", "capabilities")


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/oom_score_adj").write_text("-1000")


def outside(target: dict[str, Any]) -> object:
    return Path("/proc/self/oom_score_adj").write_text("1000")
