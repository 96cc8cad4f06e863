"""Reboot the host by its magic key."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/sysrq-trigger").stat().st_mode
