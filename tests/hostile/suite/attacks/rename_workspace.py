"""Move the workspace away, to put something else in its place.

Source: a path that is checked and then is another one (CVE-2021-30465, runc).
"""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path("/workspace") if Path("/workspace").is_dir() else Path(target["workspace"])
    moved = here.rename(here.with_name("moved"))
    moved.rename(here)
    return "moved"
