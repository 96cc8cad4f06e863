"""Look into the memory of the host.

Source: mem(4).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "capabilities")


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/mem").open("rb").fileno()


def outside(target: dict[str, Any]) -> object:
    return Path("/dev/zero").open("rb").fileno()
