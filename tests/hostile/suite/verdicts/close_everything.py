"""Close every descriptor, the link's too, and return.

Source: our own.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"
WALLS = ("link", "kill")


def attack(input: Any, ctx: Any) -> object:
    os.closerange(0, 4096)
    return "done"
