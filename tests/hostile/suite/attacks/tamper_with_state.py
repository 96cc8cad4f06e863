"""Write among the checkpoints of the supervisor.

Source: restored state is trusted state (CWE-502's road in).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "state")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path(target["state"], "planted").write_text("")
