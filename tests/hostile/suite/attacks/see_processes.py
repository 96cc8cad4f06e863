"""See the host's processes.

Source: hidepid, proc(5).
"""

import os
from typing import Any

EXPECTED = "ValueError"
WALLS = ("pid", "proc")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return pids[pids.index(target["pid"])]
