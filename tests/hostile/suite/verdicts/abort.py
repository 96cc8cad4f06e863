"""Abort.

Source: our own.
"""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"
WALLS = ("kill",)


def attack(input: Any, ctx: Any) -> object:
    os.abort()
