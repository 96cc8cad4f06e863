"""Be born into a new user namespace."""

import subprocess
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    done = subprocess.run(["unshare", "--user", "--fork", "true"], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr)
    return "born"
