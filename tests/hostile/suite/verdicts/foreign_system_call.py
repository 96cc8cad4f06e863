"""Call the kernel by another architecture's numbers.

Source: seccomp(2): x32 has the architecture of x86-64, so a filter that looks at that alone
lets its numbers pass.
"""

from __future__ import annotations

import os
import platform
import signal
from typing import Any

from ..inside import call_by_number

KIND = "violation"
WALLS = ("seccomp",)


def attack(input: Any, ctx: Any) -> object:
    if platform.machine() == "x86_64":
        call_by_number(0x4000_0000 + 39)  # x32's getpid
    else:
        os.kill(os.getpid(), signal.SIGSYS)
    return "called"
