"""Leave a setuid program behind."""

import os
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    planted = Path("/tmp/planted")
    planted.write_bytes(b"")
    planted.chmod(0o6755)
    flags = os.statvfs(planted).f_flag
    if flags & os.ST_NOSUID:
        raise PermissionError("nosuid: the bit means nothing here")
    return flags
