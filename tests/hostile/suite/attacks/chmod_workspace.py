"""Change the mode of a file of the workspace.

Source: our own: modes are part of what a layer must hold.
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
    (here / "kept").chmod(0o666)
    return "changed"
