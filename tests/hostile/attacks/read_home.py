"""Read a secret from the supervisor's home folder."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return Path(target["secret"]).read_text()
