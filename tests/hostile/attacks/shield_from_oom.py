"""Shield itself from the kernel's out-of-memory killer, so that it takes another."""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/oom_score_adj").write_text("-1000")
