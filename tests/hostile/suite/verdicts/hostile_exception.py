"""Fail with an exception that fails when it is looked at.

Source: an exception whose own methods raise.
"""

from __future__ import annotations

from typing import Any

KIND = "error"
WALLS = ("values",)


def attack(input: Any, ctx: Any) -> object:
    class Bomb(BaseException):
        def __str__(self) -> str:
            raise Bomb

        __repr__ = __str__

    raise Bomb
