"""Return more than is carried."""

from __future__ import annotations

from typing import Any

KIND = "output_limit"
LIMITS = {"memory": "512MiB"}


def attack(input: Any, ctx: Any) -> object:
    return b"x" * (80 << 20)
