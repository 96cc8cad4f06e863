"""Walk through the root of the sandbox's init.

Source: /proc/1/root, proc(5).
"""

from pathlib import Path
from typing import Any

from ..inside import a_child

EXPECTED = "FileNotFoundError"
WALLS = ("proc", "dumpable")


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/1/root/etc/hostname").read_text()


def outside(target: dict[str, Any]) -> object:
    with a_child() as child:
        return Path(f"/proc/{child}/root/etc/passwd").read_text()
