"""Overwrite the interpreter that the supervisor runs too.

Source: CVE-2019-5736, runc: /proc/self/exe overwritten.
"""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("mount", "landlock")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/exe").resolve().open("r+b").fileno()
