"""Read a secret from the supervisor's home folder.

Source: agents that read ~/.ssh and ~/.aws (the first complaint of any tracker).
"""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path(target["secret"]).read_text()
