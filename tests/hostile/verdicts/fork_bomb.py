"""Fork until nobody may fork any more."""

from __future__ import annotations

import os
from typing import Any

KIND = "pids"
LIMITS = {"pids": 32}


def attack(input: Any, ctx: Any) -> object:
    while True:
        os.fork()
