"""Change the workspace.

Source: agents that edit the real checkout.
"""

from pathlib import Path
from typing import Any

EXPECTED = None
WALLS = ("layer",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    place = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    (place / "planted").write_text("x")
    return "written"
