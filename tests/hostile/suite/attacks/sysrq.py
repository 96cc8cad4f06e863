"""Reboot the host by its magic key.

Source: CVE-2025-31133: runc's masked paths.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc",)


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/sysrq-trigger").stat().st_mode


def outside(target: dict[str, Any]) -> object:
    return Path("/proc/sys/kernel/core_pattern").stat().st_mode
