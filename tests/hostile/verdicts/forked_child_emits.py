"""Fork, and let the child speak through the link."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


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
    assert seen.items == []
    assert "own process" in seen.output
