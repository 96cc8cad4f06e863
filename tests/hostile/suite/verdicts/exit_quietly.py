"""Exit as if all were well.

Source: a worker that exits 0 is taken for done.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    os._exit(0)
