"""Have a step of building the sandbox fail, and pass for a program that ended well.

Source: claude-code#55585, #81421: sandboxes that silently ran without walls.
"""

from __future__ import annotations

import errno

from ..require import require
from ..stage import Stage

WALLS = ("plan",)


def attack(stage: Stage) -> str:
    done = stage.lying({}, "echo", "it ran")
    require(done.stdout == "it ran\n", f"it does not run in any case: {done.stderr}")
    for call in ("pivot_root", "sethostname"):
        done = stage.lying({call: errno.EPERM}, "echo", "it ran")
        require(done.stdout == "", f"without {call}: it ran")
        require(done.returncode == 125, f"without {call}: exit code {done.returncode}")
    return "setup"
