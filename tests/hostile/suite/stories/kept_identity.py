"""Stay who it was to the host: the kernel says its ids were changed, and they were not.

Source: setuid calls whose answer nobody looked at (CERT POS37-C).
"""

from __future__ import annotations

import os

from ..require import require
from ..stage import Stage

WALLS = ("posture", "user")


def attack(stage: Stage) -> str:
    done = stage.lying({"setresuid": 0, "setresgid": 0}, "cat", "/proc/self/uid_map")
    if os.geteuid() != 0:
        # An ordinary user's sandboxes are that user to the host; there is no other to be.
        require(done.returncode == 0, done.stderr)
        return "nobody else"
    require(done.stdout == "", f"it ran as {done.stdout}")
    require(done.returncode == 125, f"exit code {done.returncode}: {done.stderr}")
    return "setup"
