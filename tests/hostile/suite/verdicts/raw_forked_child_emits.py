"""Fork behind Python's back, and let both speak through the link at once.

Source: our own: two writers of one connection.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from ..inside import wait_for_death
from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "timeout.wall"
WALLS = ("link",)
TIMEOUTS = {"wall": "1s"}


def attack(input: Any, ctx: Any) -> object:
    child = ctypes.CDLL(None).fork()
    for number in range(1000):
        ctx.emit([child == 0, number])
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    wait_for_death()


def check(seen: Seen) -> None:
    # Two libzmq's on one connection: what comes is either whole or a broken rule.
    require(all(isinstance(item, list) for item in seen.items), seen.items)
