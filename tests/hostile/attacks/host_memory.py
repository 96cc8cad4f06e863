"""Look into the memory of the host."""

from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path("/dev/mem").open("rb").fileno()
