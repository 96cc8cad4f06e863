"""Be born into a new user namespace.

Source: filters that look at unshare and forget clone's flags (flatpak's CVE-2021-41133).
"""

import subprocess
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    done = subprocess.run(["unshare", "--user", "--fork", "true"], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr)
    return "born"
