"""Make by hand the mark that deletes a file of a lower layer.

Source: overlayfs: a device 0/0 is a whiteout.
"""

import os
import stat
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp",)


def attack(target: dict[str, Any]) -> object:
    return forge(Path("/workspace/forged"))


def outside(target: dict[str, Any]) -> object:
    return forge(Path(target["workspace"], "forged"))


def forge(place: Path) -> object:
    os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))
    return "forged"
