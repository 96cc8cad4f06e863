"""Move away the folder that a bound path lies in, and put another in its place.

Source: CVE-2021-30465, runc: what a path leads to, changed between look and use.
"""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("mount", "landlock")


def attack(target: dict[str, Any]) -> object:
    return replace(Path("/sources"))


def outside(target: dict[str, Any]) -> object:
    bound = Path(target["workspace"], "parent")
    bound.mkdir()
    return replace(bound)


def replace(folder: Path) -> object:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    return "replaced"
