"""Climb out of the workspace by its parent.

Source: CWE-22.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path(target["workspace"])  # as the host knows it, where that is seen
    if not here.is_dir():
        here = Path("/workspace")
    return (here / ".." / Path(target["secret"]).name).read_text()
