"""Leave a setuid program behind.

Source: CVE-2021-3847's kind: a setuid file carried out by a layer.
"""

import os
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("scratch", "user")


def attack(target: dict[str, Any]) -> object:
    return plant(Path("/tmp/planted"))


def outside(target: dict[str, Any]) -> object:
    return plant(Path(target["workspace"], "planted"))


def plant(planted: Path) -> object:
    planted.write_bytes(b"")
    planted.chmod(0o6755)
    flags = os.statvfs(planted).f_flag
    if flags & os.ST_NOSUID:
        raise PermissionError("nosuid: the bit means nothing here")
    return flags
