"""Climb out of the workspace by its parent.

Source: CWE-22.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    return (here / ".." / Path(target["secret"]).name).read_text()
