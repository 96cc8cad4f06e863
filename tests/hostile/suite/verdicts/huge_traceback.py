"""Fail at the bottom of a deep recursion, over lines of 10 KB.

Source: CWE-400.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "error"
WALLS = ("output",)


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
    require(len(seen.error["traceback"].encode()) <= 16 << 10, "a longer traceback than may be")
