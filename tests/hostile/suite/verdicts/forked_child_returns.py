"""Fork, and let the child come out of the function too.

Source: multiprocessing's forked children that run the parent's code on.
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
    child = os.fork()
    if child == 0:
        return "from the child"
    os.waitpid(child, 0)
    return "from the task"


def check(seen: Seen) -> None:
    require(seen.output == "from the task", seen.output)
