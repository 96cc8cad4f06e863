"""Read what lies beside the workspace and the task's own sources.

Source: agents that read a project's .env.
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount", "landlock")
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path(target["neighbour"]).read_text()
