"""Leave by a folder that somebody left open.

Source: CVE-2024-21626, runc.
"""

import os
import stat
from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("descriptors",)


def attack(target: dict[str, Any]) -> object:
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISDIR(os.fstat(int(name)).st_mode):
                return Path(f"/proc/self/fd/{name}/..").resolve().as_posix()
        except OSError:
            continue  # the descriptor of the listing itself
    raise FileNotFoundError("no folder is open")


def outside(target: dict[str, Any]) -> object:
    os.open(target["workspace"], os.O_RDONLY)
    return attack(target)
