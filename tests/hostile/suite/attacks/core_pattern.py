"""Have the host run a program at the next crash (core_pattern).

Source: CVE-2025-31133: runc's masked paths.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/sys/kernel/core_pattern").read_text()
