"""Fork, and let the child come out of the function too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "completed"


def attack(input: Any, ctx: Any) -> object:
    child = os.fork()
    if child == 0:
        return "from the child"
    os.waitpid(child, 0)
    return "from the task"


def check(seen: Seen) -> None:
    assert seen.output == "from the task"
