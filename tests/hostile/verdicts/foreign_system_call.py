"""Call the kernel by another architecture's numbers."""

from __future__ import annotations

import os
import platform
import signal
from typing import Any

from hostile.inside import call_by_number

KIND = "violation"


def attack(input: Any, ctx: Any) -> object:
    if platform.machine() == "x86_64":
        call_by_number(0x4000_0000 + 39)  # x32's getpid
    else:
        os.kill(os.getpid(), signal.SIGSYS)
    return "called"
