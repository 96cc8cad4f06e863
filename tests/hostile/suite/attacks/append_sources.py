"""Change the task's own sources, which other attempts will load.

Source: our own: the next attempt loads the same sources.
"""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("mount",)


def attack(target: dict[str, Any]) -> object:
    with Path(__file__).open("a") as file:
        return file.write("")


def outside(target: dict[str, Any]) -> object:
    copy = Path(target["workspace"], "source.py")
    copy.write_text("")
    with copy.open("a") as file:
        return file.write("")
