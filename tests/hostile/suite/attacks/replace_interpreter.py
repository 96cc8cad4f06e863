"""Overwrite the interpreter that the supervisor runs too.

Source: CVE-2019-5736, runc: /proc/self/exe overwritten.
"""

import shutil
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("mount", "landlock")


def attack(target: dict[str, Any]) -> object:
    return Path("/proc/self/exe").resolve().open("r+b").fileno()


def outside(target: dict[str, Any]) -> object:
    copy = Path(target["workspace"], "program")
    shutil.copy("/bin/true", copy)
    return copy.open("r+b").fileno()
