"""Fork, and let the child speak through the link.

Source: libzmq's guide: a context does not survive a fork.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    told, tell = os.pipe()
    if os.fork() == 0:
        try:
            ctx.emit("from the child")
        except RuntimeError as error:
            os.write(tell, str(error).encode())
        os._exit(0)
    os.close(tell)
    return os.read(told, 4096).decode()


def check(seen: Seen) -> None:
    require(seen.items == [], seen.items)
    require("own process" in seen.output, seen.output)
