"""Fail at the bottom of a deep recursion, over lines of 10 KB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile.arena import Seen

KIND = "error"


def attack(input: Any, ctx: Any) -> object:
    line = "x = " + "(" * 50 + "dig(n - 1)" + ")" * 50 + " or " + repr("y" * 10_000)
    source = f"def dig(n):\n    if not n: raise ValueError('bottom')\n    {line}\n"
    name = "/tmp/dig.py"
    with Path(name).open("w") as file:
        file.write(source)
    names: dict[str, Any] = {}
    exec(compile(source, name, "exec"), names)
    return names["dig"](500)


def check(seen: Seen) -> None:
    assert len(seen.error["traceback"].encode()) <= 16 << 10
