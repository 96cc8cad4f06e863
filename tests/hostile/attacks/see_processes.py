"""See the host's processes."""

import os
from typing import Any

EXPECTED = "ValueError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return pids[pids.index(target["pid"])]
