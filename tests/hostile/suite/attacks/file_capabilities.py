"""Give a program capabilities that whoever runs it will have.

Source: CVE-2023-2640, Ubuntu's overlayfs; capabilities(7).
"""

import os
import struct
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("capabilities", "seccomp")
NEEDS = "setfcap"


def attack(target: dict[str, Any]) -> object:
    return give(Path("/tmp/program"))


def outside(target: dict[str, Any]) -> object:
    return give(Path(target["workspace"], "program"))


def give(program: Path) -> object:
    program.write_bytes(b"")
    # struct vfs_cap_data, version 2: cap_sys_admin, effective
    value = struct.pack("<5I", 0x0200_0001, 1 << 21, 0, 0, 0)
    os.setxattr(program, "security.capability", value)
    return "given"
