"""Write into the memory of the sandbox's init.

Source: /proc/1/mem, proc(5).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/1/mem").open("r+b").fileno()
