"""Make a device node of the host's disk.

Source: mknod(2): Docker gives CAP_MKNOD by default.
"""

import os
import stat
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities", "user")
NEEDS = "mknod"


def attack(target: dict[str, Any]) -> object:
    os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    return "made"


def outside(target: dict[str, Any]) -> object:
    os.mknod(Path(target["workspace"], "disk"), stat.S_IFBLK | 0o600, os.makedev(8, 0))
    return "made"
