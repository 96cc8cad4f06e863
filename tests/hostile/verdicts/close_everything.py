"""Close every descriptor, the link's too, and return."""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"


def attack(input: Any, ctx: Any) -> object:
    os.closerange(0, 4096)
    return "done"
