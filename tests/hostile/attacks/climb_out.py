"""Climb out of the workspace by its parent."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    return (here / ".." / Path(target["secret"]).name).read_text()
