"""Gain privileges by a setuid program.

Source: CVE-2021-4034, pkexec.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("no_new_privs", "mount")


def attack(target: dict[str, Any]) -> object:
    done = subprocess.run(["su", "-c", "id -u"], capture_output=True, text=True, input="")
    if done.returncode or done.stdout.strip() != "0":
        raise PermissionError(done.stderr)
    return "root"


def outside(target: dict[str, Any]) -> object:
    program = Path(shutil.which("su") or "/bin/su")
    if not program.stat().st_mode & stat.S_ISUID or os.statvfs(program).f_flag & os.ST_NOSUID:
        raise PermissionError("no setuid program")
    return "there, and it counts"
