"""Write into the memory of the sandbox's init.

Source: /proc/1/mem, proc(5).
"""

from pathlib import Path
from typing import Any

from ..inside import a_child

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/1/mem").open("r+b").fileno()


def outside(target: dict[str, Any]) -> object:
    with a_child() as child:
        return Path(f"/proc/{child}/mem").open("r+b").fileno()
