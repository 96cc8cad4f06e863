"""Change the workspace.

Source: agents that edit the real checkout.
"""

from pathlib import Path
from typing import Any

EXPECTED = None
WALLS = ("layer",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    place = Path(target["workspace"])  # as the host knows it, where that is seen
    if not place.is_dir():
        place = Path("/workspace")
    (place / "planted").write_text("x")
    return "written"
