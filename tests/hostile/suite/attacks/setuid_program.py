"""Gain privileges by a setuid program.

Source: CVE-2021-4034, pkexec.
"""

import subprocess
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("no_new_privs", "mount")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    done = subprocess.run(["su", "-c", "id -u"], capture_output=True, text=True, input="")
    if done.returncode or done.stdout.strip() != "0":
        raise PermissionError(done.stderr)
    return "root"
