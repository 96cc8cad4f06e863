"""Fail with an exception that fails when it is looked at."""

from __future__ import annotations

from typing import Any

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    class Bomb(BaseException):
        def __str__(self) -> str:
            raise Bomb

        __repr__ = __str__

    raise Bomb
