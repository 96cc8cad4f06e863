"""Kill itself, as the supervisor would.

Source: our own.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ..inside import a_child

KIND = "crash"
WALLS = ("kill",)


def attack(input: Any, ctx: Any) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def outside() -> object:
    with a_child() as child:
        os.kill(child, signal.SIGKILL)
    return "killed"
