"""Ask the interpreter to end."""

from __future__ import annotations

import sys
from typing import Any

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    sys.exit(0)
