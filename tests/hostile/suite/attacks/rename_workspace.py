"""Move the workspace away, to put something else in its place.

Source: a path that is checked and then is another one (CVE-2021-30465, runc).
"""

from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    here = Path(target["workspace"])  # as the host knows it, where that is seen
    if not here.is_dir():
        here = Path("/workspace")
    moved = here.rename(here.with_name("moved"))
    moved.rename(here)
    return "moved"
