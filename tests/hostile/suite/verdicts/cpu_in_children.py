"""Burn the processor in children, each of which burns little.

Source: isolate: time of children that were not waited for.
"""

from __future__ import annotations

import os
import time
from typing import Any

KIND = "timeout.cpu"
WALLS = ("clocks", "limits")
TIMEOUTS = {"cpu": "500ms", "wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        child = os.fork()
        if child == 0:
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            os._exit(0)
        os.waitpid(child, 0)
