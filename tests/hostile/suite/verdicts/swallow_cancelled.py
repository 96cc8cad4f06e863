"""Catch whatever asks it to end.

Source: `except BaseException` in an agent's loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "timeout.wall"
WALLS = ("clocks", "kill")
TIMEOUTS = {"wall": "300ms", "grace": "1s"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        try:
            time.sleep(3600)
        except BaseException as error:
            ctx.log(f"caught {type(error).__name__}")


def check(seen: Seen) -> None:
    require("caught Cancelled" in seen.logged("log"), seen.logged("log"))
