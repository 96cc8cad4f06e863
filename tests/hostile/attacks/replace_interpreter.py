"""Overwrite the interpreter that the supervisor runs too (CVE-2019-5736)."""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/exe").resolve().open("r+b").fileno()
