"""Catch whatever asks it to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "timeout.wall"
TIMEOUTS = {"wall": "300ms", "grace": "1s"}


def attack(input: Any, ctx: Any) -> object:
    while True:
        try:
            time.sleep(3600)
        except BaseException as error:
            ctx.log(f"caught {type(error).__name__}")


def check(seen: Seen) -> None:
    assert "caught Cancelled" in seen.logged("log")
