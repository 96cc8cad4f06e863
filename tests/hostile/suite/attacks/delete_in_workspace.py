"""Delete a file of the workspace.

Source: agents that clean up what was not theirs.
"""

from pathlib import Path
from typing import Any

EXPECTED = None
WALLS = ("layer",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path(target["workspace"])  # as the host knows it, where that is seen
    if not here.is_dir():
        here = Path("/workspace")
    (here / "victim").unlink()
    return "deleted"
