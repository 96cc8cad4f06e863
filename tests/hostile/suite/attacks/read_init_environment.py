"""Read the environment of the sandbox's own init.

Source: secrets in /proc/1/environ.
"""

from pathlib import Path
from typing import Any

from ..inside import a_child

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")


def attack(target: dict[str, Any]) -> object:
    return len(Path("/proc/1/environ").read_bytes())


def outside(target: dict[str, Any]) -> object:
    with a_child() as child:
        return len(Path(f"/proc/{child}/environ").read_bytes())
