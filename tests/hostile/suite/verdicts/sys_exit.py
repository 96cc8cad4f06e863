"""Ask the interpreter to end.

Source: a worker that exits 0 is taken for done.
"""

from __future__ import annotations

import sys
from typing import Any

KIND = "error"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    sys.exit(0)
