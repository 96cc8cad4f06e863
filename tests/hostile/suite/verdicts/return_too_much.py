"""Return more than is carried.

Source: CWE-400.
"""

from __future__ import annotations

from typing import Any

KIND = "output_limit"
WALLS = ("values",)
LIMITS = {"memory": "512MiB"}


def attack(input: Any, ctx: Any) -> object:
    return b"x" * (80 << 20)
