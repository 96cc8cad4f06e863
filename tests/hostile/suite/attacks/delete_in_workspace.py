"""Delete a file of the workspace.

Source: agents that clean up what was not theirs.
"""

from pathlib import Path
from typing import Any

EXPECTED = None
WALLS = ("layer",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    (here / "victim").unlink()
    return "deleted"
