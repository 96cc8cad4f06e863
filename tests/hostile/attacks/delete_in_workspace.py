"""Delete a file of the workspace."""

from pathlib import Path
from typing import Any

EXPECTED = None
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    (here / "victim").unlink()
    return "deleted"
