"""Plant code among the packages that the supervisor imports."""

from pathlib import Path
from typing import Any

import msgspec

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path(msgspec.__file__).with_name("planted.py").write_text("")
